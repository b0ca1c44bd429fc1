#include <switchyard/moefication/training.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "catch.hpp"
#include "support/compare.hpp"
#include "support/random_numbers.hpp"

namespace sy = switchyard;
namespace moefication = switchyard::moefication;

namespace {

std::vector<float> random_floats(std::size_t count, unsigned seed) {
  support::random_numbers random(seed);
  std::vector<float> values(count);
  for (float& v : values) v = static_cast<float>(random.normal());
  return values;
}

/// z = W_b tanh(W_a x) and the mean cross entropy, in double.
double loss_in_double(moefication::selector const& s, std::vector<float> const& x, std::vector<float> const& targets) {
  auto const width = static_cast<std::size_t>(s.experts), hidden = static_cast<std::size_t>(s.hidden);
  double total = 0.0;
  for (std::size_t t = 0; t < x.size() / hidden; ++t) {
    std::vector<double> inner(width);
    for (std::size_t e = 0; e < width; ++e) {
      double sum = 0.0;
      for (std::size_t c = 0; c < hidden; ++c) sum += double(s.weight[e * hidden + c]) * double(x[t * hidden + c]);
      inner[e] = std::tanh(sum);
    }
    for (std::size_t e = 0; e < width; ++e) {
      double z = 0.0;
      for (std::size_t j = 0; j < width; ++j) z += double(s.output_weight[e * width + j]) * inner[j];
      double const p = 1.0 / (1.0 + std::exp(-z)), y = double(targets[t * width + e]);
      total -= y * std::log(p) + (1.0 - y) * std::log(1.0 - p);
    }
  }
  return total / double(targets.size());
}

}  // namespace

TEST_CASE("a selector begins with the centers and the identity", "[moefication]") {
  moefication::selector const s = moefication::first_selector({1, 2, 3, 4, 5, 6}, 2);
  CHECK(s.hidden == 3);
  CHECK(s.weight == std::vector<float>{1, 2, 3, 4, 5, 6});
  CHECK(s.output_weight == std::vector<float>{1, 0, 0, 1});
  CHECK_THROWS_AS(moefication::first_selector({1, 2, 3}, 2), sy::error);
}

TEST_CASE("the gradient of a selector's loss is that of finite differences", "[moefication]") {
  constexpr int experts = 5, hidden = 7, tokens = 6;
  moefication::selector s = moefication::first_selector(random_floats(experts * hidden, 1), experts);
  s.output_weight = random_floats(experts * experts, 2);
  std::vector<float> const raw = random_floats(tokens * hidden, 3);
  std::vector<float> const x = moefication::normalised_rows(sy::view<float const>{raw.data(), tokens, hidden});
  std::vector<float> targets = random_floats(tokens * experts, 4);
  for (float& t : targets) t = 1.0f / (1.0f + std::exp(-t));
  moefication::selector_gradient const got =
      moefication::selector_loss(s, {x.data(), tokens, hidden}, {targets.data(), tokens, experts});
  CHECK(got.loss == Catch::Approx(loss_in_double(s, x, targets)).epsilon(1e-6));
  auto const check = [&](std::vector<float> moefication::selector::*member, std::vector<float> const& gradient) {
    REQUIRE(gradient.size() == (s.*member).size());
    for (std::size_t i = 0; i < gradient.size(); ++i) {
      constexpr float step = 0x1p-6f;
      moefication::selector up = s, down = s;
      (up.*member)[i] += step;
      (down.*member)[i] -= step;
      double const apart = double((up.*member)[i]) - double((down.*member)[i]);
      double const slope = (loss_in_double(up, x, targets) - loss_in_double(down, x, targets)) / apart;
      CHECK(double(gradient[i]) == Catch::Approx(slope).epsilon(1e-3).margin(2e-5));
    }
  };
  check(&moefication::selector::weight, got.weight);
  check(&moefication::selector::output_weight, got.output_weight);
}

TEST_CASE("training captures more mass, ends with its best epoch, and repeats itself", "[moefication]") {
  // The mass of an expert is what a direction of its own says, which is not its center.
  constexpr int experts = 8, hidden = 12, tokens = 2000;
  std::vector<float> const x = random_floats(tokens * hidden, 5), directions = random_floats(experts * hidden, 6);
  std::vector<float> masses(tokens * experts);
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t e = 0; e < experts; ++e) {
      float sum = 0.0f;
      for (std::size_t c = 0; c < hidden; ++c) sum += directions[e * hidden + c] * x[t * hidden + c];
      masses[t * experts + e] = sum > 0.0f ? sum * sum : 0.0f;
    }
  }
  std::vector<float> const centers = random_floats(experts * hidden, 7);
  std::vector<moefication::selector_progress> epochs;
  moefication::selector_training settings{.epochs = 12, .batch = 100, .chosen_share = 0.25, .seed = 4};
  settings.progress = [&](moefication::selector_progress const& p) { epochs.push_back(p); };
  sy::view<float const> const seen{x.data(), tokens, hidden}, wanted{masses.data(), tokens, experts};
  auto const trained =
      moefication::train_selector(moefication::first_selector(centers, experts), seen, wanted, settings);
  REQUIRE(epochs.size() == 12);
  CHECK(epochs.back().loss < epochs.front().loss);
  double best = 0.0;
  for (auto const& p : epochs) best = std::max(best, p.captured_mass);
  CHECK(trained.captured_mass == best);
  CHECK(epochs[static_cast<std::size_t>(trained.epoch - 1)].captured_mass == best);
  // What is returned is that epoch's selector: it captures as much of the last tenth.
  constexpr int last = tokens / 10, chosen = 2;
  auto const captured = [&](std::vector<float> const& scores) {
    return moefication::captured_mass({masses.data() + (tokens - last) * experts, last, experts},
                                      moefication::best_experts({scores.data(), last, experts}, chosen).experts,
                                      chosen);
  };
  auto const captured_by = [&](moefication::selector const& s) {
    return captured(moefication::selector_logits(s, {x.data() + (tokens - last) * hidden, last, hidden}));
  };
  CHECK(captured_by(trained.best) == Catch::Approx(best));
  double const most = captured({masses.end() - last * experts, masses.end()});
  double const before = captured_by(moefication::first_selector(centers, experts));
  CHECK(before < 0.5 * most);
  CHECK(best > 0.8 * most);
  settings.progress = {};
  auto const again = moefication::train_selector(moefication::first_selector(centers, experts), seen, wanted, settings);
  CHECK(support::same_bits(again.best.weight, trained.best.weight));
  CHECK(support::same_bits(again.best.output_weight, trained.best.output_weight));
}

TEST_CASE("training refuses sizes that do not fit", "[moefication]") {
  std::vector<float> const numbers(60, 0.5f);
  moefication::selector const s = moefication::first_selector({1, 2, 3, 4, 5, 6}, 2);
  sy::view<float const> const tokens{numbers.data(), 20, 3}, masses{numbers.data(), 20, 2};
  CHECK_NOTHROW(moefication::train_selector(s, tokens, masses, {.epochs = 1}));
  CHECK_THROWS_AS(moefication::train_selector(s, masses, masses), sy::error);
  CHECK_THROWS_AS(moefication::train_selector(s, tokens, tokens), sy::error);
  CHECK_THROWS_AS(moefication::train_selector(s, {numbers.data(), 5, 3}, {numbers.data(), 5, 2}), sy::error);
  CHECK_THROWS_AS(moefication::train_selector(s, tokens, masses, {.validation_share = 1.0}), sy::error);
  CHECK_THROWS_AS(moefication::train_selector(s, tokens, masses, {.batch = 0}), sy::error);
}
