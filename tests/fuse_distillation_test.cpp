#include <switchyard/fuse_distillation.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "catch.hpp"
#include "safetensors.hpp"
#include "support/random_numbers.hpp"
#include "support/said.hpp"

namespace sy = switchyard;

using support::said;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

/// Logits of both paths and room for their gradients, without gaps.
struct problem {
  std::int64_t positions, vocabulary;
  std::vector<float> language, shared;
  std::vector<std::uint8_t> active = {};
  std::vector<float> language_gradient = std::vector<float>(language.size(), 7.0f);
  std::vector<float> shared_gradient = language_gradient;

  sy::fuse_distillation_args args() {
    return {.language_logits = {language.data(), positions, vocabulary},
            .shared_logits = {shared.data(), positions, vocabulary},
            .active = active.empty() ? nullptr : active.data(),
            .language_gradient = {language_gradient.data(), positions, vocabulary},
            .shared_gradient = {shared_gradient.data(), positions, vocabulary}};
  }
};

problem random_problem(std::int64_t positions, std::int64_t vocabulary, unsigned seed) {
  support::random_numbers random(seed);
  std::vector<float> language(positions * vocabulary), shared(positions * vocabulary);
  for (float& logit : language) logit = static_cast<float>(2.0 * random.normal());
  for (float& logit : shared) logit = static_cast<float>(2.0 * random.normal());
  return {positions, vocabulary, language, shared};
}

/// P = (1/2, 1/2) and Q = (3/4, 1/4).
problem by_hand() { return {1, 2, {0.0f, 0.0f}, {std::log(3.0f), 0.0f}}; }

std::vector<double> softmax(std::vector<double> const& logits) {
  double total = 0.0;
  std::vector<double> p;
  for (double logit : logits) total += std::exp(logit);
  for (double logit : logits) p.push_back(std::exp(logit) / total);
  return p;
}

/// The distillation at one position as it is defined, for logits that are not far from 0.
double defined_distillation(std::vector<double> const& language, std::vector<double> const& shared) {
  auto const p = softmax(language), q = softmax(shared);
  double sum = 0.0;
  for (std::size_t v = 0; v < p.size(); ++v) sum += 0.5 * (p[v] * std::log(p[v] / q[v]) + q[v] * std::log(q[v] / p[v]));
  return sum;
}

double defined_cross_entropy(std::vector<double> const& logits, std::size_t word, double smoothing) {
  auto const p = softmax(logits);
  double sum = 0.0;
  for (std::size_t v = 0; v < p.size(); ++v) {
    sum -= (v == word ? 1.0 - smoothing : smoothing / static_cast<double>(p.size() - 1)) * std::log(p[v]);
  }
  return sum;
}

/// The derivative of a function of logits by one of them, with an error of the fourth order.
template <class Function>
double derivative(Function function, std::vector<double>& logits, std::size_t at) {
  double const step = 1e-3, middle = logits[at];
  auto const value = [&](double distance) {
    logits[at] = middle + distance;
    return function();
  };
  double const wide = value(2.0 * step) - value(-2.0 * step), narrow = value(step) - value(-step);
  logits[at] = middle;
  return (8.0 * narrow - wide) / (12.0 * step);
}

/// max |a - b| / max |b|
double distance(std::vector<float> const& a, std::vector<float> const& b) {
  REQUIRE(a.size() == b.size());
  double largest = 0.0, most = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(b[i])));
    most = std::max(most, std::abs(static_cast<double>(a[i]) - b[i]));
  }
  return most / largest;
}

}  // namespace

TEST_CASE("the fuse distillation of two words by hand, either way round", "[fuse_distillation]") {
  problem hand = by_hand();
  CHECK(sy::fuse_distillation(hand.args()) == Catch::Approx(0.137327).margin(5e-7));
  // (P - Q) (ln P - ln Q) / 2, summed: (-1/4 ln(2/3) + 1/4 ln 2) / 2.
  CHECK(sy::fuse_distillation(hand.args()) == Catch::Approx(0.125 * std::log(3.0)).epsilon(1e-7));
  auto const language = hand.language_gradient, shared = hand.shared_gradient;
  std::swap(hand.language, hand.shared);
  CHECK(sy::fuse_distillation(hand.args()) == Catch::Approx(0.137327).margin(5e-7));
  CHECK(hand.language_gradient == shared);
  CHECK(hand.shared_gradient == language);
}

TEST_CASE("paths that agree have no fuse distillation and no gradient", "[fuse_distillation]") {
  problem same = random_problem(3, 11, 1);
  same.shared = same.language;
  CHECK(sy::fuse_distillation(same.args()) == 0.0);
  for (float g : same.language_gradient) CHECK(g == 0.0f);
  for (float g : same.shared_gradient) CHECK(g == 0.0f);
  for (float& logit : same.language) logit += 0.5f;  // a softmax does not see it
  CHECK(sy::fuse_distillation(same.args()) == Catch::Approx(0.0).margin(1e-12));
}

TEST_CASE("gradients agree with finite differences", "[fuse_distillation]") {
  problem random = random_problem(2, 7, 2);
  std::int32_t const words[] = {3, 0};
  auto const check = [&](auto const& loss_at) {
    for (std::int64_t position = 0; position < 2; ++position) {
      auto const begin = position * 7;
      std::vector<double> language(random.language.begin() + begin, random.language.begin() + begin + 7);
      std::vector<double> shared(random.shared.begin() + begin, random.shared.begin() + begin + 7);
      auto const loss = [&] { return loss_at(position, language, shared); };
      for (std::size_t v = 0; v < 7; ++v) {
        INFO("position " << position << ", word " << v);
        auto const at = static_cast<std::size_t>(begin) + v;
        CHECK(random.language_gradient[at] == Catch::Approx(derivative(loss, language, v)).epsilon(1e-6).margin(1e-8));
        CHECK(random.shared_gradient[at] == Catch::Approx(derivative(loss, shared, v)).epsilon(1e-6).margin(1e-8));
      }
    }
  };
  using logits = std::vector<double>;
  sy::fuse_distillation(random.args());
  check([&](std::int64_t, logits const& l, logits const& s) { return defined_distillation(l, s); });
  sy::fuse_distillation_training(random.args(), {.words = words, .label_smoothing = 0.2, .weight = 3.0});
  check([&](std::int64_t position, logits const& l, logits const& s) {
    auto const word = static_cast<std::size_t>(words[position]);
    return 0.5 * (defined_cross_entropy(l, word, 0.2) + defined_cross_entropy(s, word, 0.2)) +
           3.0 * defined_distillation(l, s);
  });
}

TEST_CASE("padding adds nothing to losses, its gradients are 0 and its words are not read", "[fuse_distillation]") {
  problem padded = random_problem(4, 6, 3);
  padded.active = {0, 1, 0, 1};
  for (int v = 0; v < 6; ++v) padded.language[v] = std::numeric_limits<float>::quiet_NaN();
  std::int32_t const words[] = {-1, 2, 1000, 5};
  problem kept{2, 6, {}, {}};
  for (int position : {1, 3}) {
    for (int v = 0; v < 6; ++v) {
      kept.language.push_back(padded.language[position * 6 + v]);
      kept.shared.push_back(padded.shared[position * 6 + v]);
    }
  }
  kept.language_gradient.resize(12);
  kept.shared_gradient.resize(12);
  std::int32_t const kept_words[] = {2, 5};
  auto const got = sy::fuse_distillation_training(padded.args(), {.words = words});
  auto const right = sy::fuse_distillation_training(kept.args(), {.words = kept_words});
  CHECK(got.loss == right.loss);
  CHECK(got.language_cross_entropy == right.language_cross_entropy);
  CHECK(got.shared_cross_entropy == right.shared_cross_entropy);
  CHECK(got.distillation == right.distillation);
  for (int v = 0; v < 6; ++v) {
    for (int i = 0; i < 2; ++i) {
      CHECK(padded.language_gradient[i * 12 + v] == 0.0f);
      CHECK(padded.shared_gradient[i * 12 + v] == 0.0f);
      CHECK(padded.language_gradient[i * 12 + 6 + v] == kept.language_gradient[i * 6 + v]);
      CHECK(padded.shared_gradient[i * 12 + 6 + v] == kept.shared_gradient[i * 6 + v]);
    }
  }
  double const distillation = sy::fuse_distillation(padded.args());
  CHECK(distillation == right.distillation);
}

TEST_CASE("logits that are far apart give finite losses and gradients", "[fuse_distillation]") {
  float const largest = GENERATE(1e4f, 1e30f);
  problem sure{2, 3, {largest, 0.0f, -largest, largest, 0.0f, 0.0f}, {-largest, 0.0f, largest, largest, 0.0f, 0.0f}};
  std::int32_t const words[] = {0, 0};
  auto const got = sy::fuse_distillation_training(sure.args(), {.words = words, .label_smoothing = 0.0});
  CHECK(got.distillation == Catch::Approx(2.0 * largest));  // ln P - ln Q is 2 * largest where P is 1, and the reverse
  CHECK(got.language_cross_entropy == 0.0);
  CHECK(got.shared_cross_entropy == Catch::Approx(2.0 * largest));
  CHECK(std::isfinite(got.loss));
  for (float g : sure.language_gradient) CHECK(std::isfinite(g));
  for (float g : sure.shared_gradient) CHECK(std::isfinite(g));
  // A softmax that is 0 or 1 does not move, and what is left is (P - Q) / 2 and half of P or Q minus the label.
  CHECK(sure.language_gradient[0] == 0.5f);
  CHECK(sure.shared_gradient[0] == -1.0f);
}

TEST_CASE("a word that is closed in both paths is as if it were not there", "[fuse_distillation]") {
  problem closed{1, 3, {0.0f, -infinity, 0.0f}, {std::log(3.0f), -infinity, 0.0f}};
  problem hand = by_hand();
  std::int32_t const word[] = {0};
  auto const got = sy::fuse_distillation_training(closed.args(), {.words = word, .label_smoothing = 0.0});
  auto const right = sy::fuse_distillation_training(hand.args(), {.words = word, .label_smoothing = 0.0});
  CHECK(got.loss == right.loss);
  CHECK(closed.language_gradient[0] == hand.language_gradient[0]);
  CHECK(closed.language_gradient[1] == 0.0f);
  CHECK(closed.shared_gradient[2] == hand.shared_gradient[1]);
  closed.shared[1] = 0.0f;
  CHECK_FALSE(std::isfinite(sy::fuse_distillation(closed.args())));
}

TEST_CASE("rows may stand apart, gradients may take the logits' place or be left out", "[fuse_distillation]") {
  problem dense = random_problem(3, 5, 4);
  double const right = sy::fuse_distillation(dense.args());
  std::vector<float> language(3 * 8, -9.0f), shared(3 * 6, -9.0f);
  for (int position = 0; position < 3; ++position) {
    for (int v = 0; v < 5; ++v) {
      language[position * 8 + v] = dense.language[position * 5 + v];
      shared[position * 6 + v] = dense.shared[position * 5 + v];
    }
  }
  sy::view<float> const by_8{language.data(), 3, 5, 8}, by_6{shared.data(), 3, 5, 6};
  CHECK(sy::fuse_distillation({.language_logits = by_8, .shared_logits = by_6}) == right);
  std::vector<float> gradient(15);
  CHECK(sy::fuse_distillation(
            {.language_logits = by_8, .shared_logits = by_6, .shared_gradient = {gradient.data(), 3, 5}}) == right);
  CHECK(gradient == dense.shared_gradient);
  CHECK(sy::fuse_distillation(
            {.language_logits = by_8, .shared_logits = by_6, .language_gradient = by_8, .shared_gradient = by_6}) ==
        right);
  for (int position = 0; position < 3; ++position) {
    for (int v = 0; v < 8; ++v) {
      CHECK(language[position * 8 + v] == (v < 5 ? dense.language_gradient[position * 5 + v] : -9.0f));
      if (v < 6) CHECK(shared[position * 6 + v] == (v < 5 ? dense.shared_gradient[position * 5 + v] : -9.0f));
    }
  }
}

TEST_CASE("fuse distillation of nothing is 0", "[fuse_distillation]") {
  auto const got =
      sy::fuse_distillation_training({.language_logits = {nullptr, 0, 4}, .shared_logits = {nullptr, 0, 4}}, {});
  CHECK((got.loss == 0.0 && got.distillation == 0.0 && got.language_cross_entropy == 0.0));
}

TEST_CASE("a fuse distillation that cannot be says why", "[fuse_distillation]") {
  problem right = random_problem(2, 3, 5);
  std::int32_t const words[] = {0, 2};
  auto const says = [&](auto change, std::string const& sentence) {
    auto args = right.args();
    sy::fuse_distillation_targets targets{.words = words};
    change(args, targets);
    CHECK(said([&] { sy::fuse_distillation_training(args, targets); }) == "switchyard: fuse_distillation, " + sentence);
  };
  using args = sy::fuse_distillation_args;
  using targets = sy::fuse_distillation_targets;
  says([](args& a, targets&) { a.language_logits = {}; },
       "language_logits: expected at least 0 x 1 (positions x vocabulary), got 0 x 0");
  says([](args& a, targets&) { a.language_logits.data = nullptr; },
       "language_logits: expected a matrix, got a null pointer");
  says([](args& a, targets&) { a.shared_logits.columns = 2; },
       "shared_logits: expected 2 x 3 (positions x vocabulary), got 2 x 2");
  says([](args& a, targets&) { a.shared_logits.row_stride = 2; },
       "shared_logits, row stride: expected at least 3, got 2");
  says([](args& a, targets&) { a.language_gradient.rows = 1; },
       "language_gradient: expected 2 x 3 (positions x vocabulary), got 1 x 3");
  says([](args& a, targets&) { a.shared_gradient.row_stride = 0; },
       "shared_gradient, row stride: expected at least 3, got 0");
  says([](args&, targets& t) { t.words = nullptr; }, "words: expected 2 words, got a null pointer");
  std::int32_t const unknown[] = {0, 3}, negative[] = {-1, 0};
  says([&](args&, targets& t) { t.words = unknown; }, "words: expected words from 0 to 2, got 3 at position 1");
  says([&](args&, targets& t) { t.words = negative; }, "words: expected words from 0 to 2, got -1 at position 0");
  says([](args&, targets& t) { t.label_smoothing = 1.0; },
       "label_smoothing: expected a number from 0 to less than 1, got 1.000000");
  says([](args&, targets& t) { t.weight = -1.0; },
       "weight: expected a finite number that is not negative, got -1.000000");
  says(
      [](args& a, targets&) {
        a.language_logits.columns = a.shared_logits.columns = 1;
        a.language_gradient = a.shared_gradient = {};
      },
      "label_smoothing: expected 0 where the vocabulary has one word, got 0.100000");
  CHECK(right.language_gradient[0] == 7.0f);
}

TEST_CASE("losses and gradients are those of the published code", "[fuse_distillation]") {
  auto const file = safetensors::read(SWITCHYARD_TEST_DATA "/losses/fd_loss.safetensors");
  auto const config = nlohmann::json::parse(file.metadata.at("config"));
  std::int64_t const vocabulary = config.at("vocabulary").get<std::int64_t>();
  auto const words = file.values<std::int32_t>("target");
  problem published{static_cast<std::int64_t>(words.size()), vocabulary, file.values<float>("logits_ls"),
                    file.values<float>("logits_shared")};
  int padding = 0;
  for (std::int32_t word : words) {
    published.active.push_back(word != config.at("padding_idx").get<std::int32_t>());
    padding += published.active.back() == 0;
  }
  REQUIRE(padding > 0);
  REQUIRE(published.language.size() == words.size() * static_cast<std::size_t>(vocabulary));

  auto const expected = [&](char const* name) { return Catch::Approx(file.values<float>(name).at(0)).epsilon(1e-6); };
  CHECK(sy::fuse_distillation(published.args()) == expected("expected.fd_loss"));
  CHECK(distance(published.language_gradient, file.values<float>("grad_aux.logits_ls")) < 1e-6);
  CHECK(distance(published.shared_gradient, file.values<float>("grad_aux.logits_shared")) < 1e-6);

  auto const got =
      sy::fuse_distillation_training(published.args(), {.words = words.data(),
                                                        .label_smoothing = config.at("label_smoothing").get<double>(),
                                                        .weight = config.at("fd_weight").get<double>()});
  CHECK(got.loss == expected("expected.loss"));
  CHECK(got.language_cross_entropy == expected("expected.ce_ls"));
  CHECK(got.shared_cross_entropy == expected("expected.ce_shared"));
  CHECK(got.distillation == expected("expected.fd_loss"));
  CHECK(distance(published.language_gradient, file.values<float>("grad.logits_ls")) < 1e-6);
  CHECK(distance(published.shared_gradient, file.values<float>("grad.logits_shared")) < 1e-6);
}
