#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "catch.hpp"
#include "reference.hpp"

namespace sy = switchyard;

namespace {

/// A layer whose logits are its tokens: the router weight is the identity. Expert e multiplies the rectified token by
/// e + 1.
template <int Experts, class Router, class Capacity>
struct by_logits {
  using layer = sy::layer<sy::shape{.hidden = Experts, .intermediate = Experts, .experts = Experts, .top_k = 1}, Router,
                          Capacity, sy::expert::mlp<sy::relu>>;

  std::vector<float> identity = std::vector<float>(Experts * Experts);
  std::vector<float> up = std::vector<float>(Experts * Experts * Experts);
  std::vector<float> down = std::vector<float>(Experts * Experts * Experts);

  std::vector<float> y, weights, logits;
  std::vector<std::int32_t> experts;
  std::vector<std::uint8_t> dropped;
  std::vector<std::int64_t> counts, load;
  sy::auxiliary_values auxiliary;

  by_logits() {
    for (int i = 0; i < Experts; ++i) {
      identity[i * Experts + i] = 1.0f;
      for (int e = 0; e < Experts; ++e) {
        up[(e * Experts + i) * Experts + i] = 1.0f;
        down[(e * Experts + i) * Experts + i] = static_cast<float>(e + 1);
      }
    }
  }

  void forward(std::vector<float> const& tokens, std::int64_t tokens_per_group = 0) {
    std::int64_t const count = static_cast<std::int64_t>(tokens.size()) / Experts;
    y.assign(tokens.size(), std::numeric_limits<float>::quiet_NaN());
    logits.assign(tokens.size(), 0.0f);
    weights.assign(count, 0.0f);
    experts.assign(count, -2);
    dropped.assign(count, 2);
    counts.assign(Experts, -1);
    load.assign(Experts, -1);
    std::vector<std::byte> workspace(layer::workspace_bytes(count));
    typename layer::args args{};
    args.tokens = {tokens.data(), count, Experts};
    args.weights = {.router = {.weight = identity.data()},
                    .up_proj = sy::weight_view<float>::packed(up.data(), Experts, Experts),
                    .down_proj = sy::weight_view<float>::packed(down.data(), Experts, Experts)};
    args.output = {y.data(), count, Experts};
    args.workspace = workspace;
    args.tokens_per_group = tokens_per_group;
    args.decisions = {.experts = experts.data(),
                      .weights = weights.data(),
                      .dropped = dropped.data(),
                      .counts = counts.data(),
                      .load = load.data()};
    args.report.logits = logits.data();
    args.auxiliary = &auxiliary;
    layer::forward(args);
  }

  /// What the layer gives for a token that no expert dropped.
  std::vector<float> expected_row(float const* token) const {
    int best = 0;
    for (int e = 1; e < Experts; ++e)
      if (token[e] > token[best]) best = e;
    double total = 0;
    for (int e = 0; e < Experts; ++e) total += std::exp(double(token[e]) - token[best]);
    std::vector<float> row(Experts);
    for (int i = 0; i < Experts; ++i) row[i] = static_cast<float>(double(best + 1) * std::max(token[i], 0.0f) / total);
    return row;
  }
};

std::vector<float> random_logits(std::int64_t tokens, int experts, unsigned seed) {
  std::mt19937 bits(seed);
  std::vector<float> logits(tokens * experts);
  for (float& v : logits) v = static_cast<float>(bits() % 4001) / 1000.0f - 2.0f;
  return logits;
}

/// Five tokens, two experts; expert 0 is wanted by four of them.
std::vector<float> const example = {2, 0, 1, 0, 0.5f, 0, 0, 1, 3, 0};

}  // namespace

TEST_CASE("the Switch example drops by position, not by probability", "[router][switch]") {
  by_logits<2, sy::router::switch_top1, sy::capacity::fixed<2>> run;
  run.forward(example);
  CHECK(run.experts == std::vector<std::int32_t>{0, 0, 0, 1, 0});
  CHECK(run.dropped == std::vector<std::uint8_t>{0, 0, 1, 0, 1});
  CHECK(run.counts == std::vector<std::int64_t>{2, 1});
  CHECK(run.load == std::vector<std::int64_t>{4, 1});
  std::vector<double> const weights = {0.880797, 0.731059, 0, 0.731059, 0};
  for (int t = 0; t < 5; ++t) CHECK(run.weights[t] == Catch::Approx(weights[t]).margin(5e-7));
  // Tokens 2 and 4 are zero, although token 4 has the largest probability of all.
  for (int t : {2, 4}) CHECK((run.y[2 * t] == 0.0f && run.y[2 * t + 1] == 0.0f));
  CHECK(run.y[0] == Catch::Approx(0.880797 * 2).epsilon(1e-6));
  CHECK(run.y[7] == Catch::Approx(0.731059 * 2).epsilon(1e-6));
}

TEST_CASE("the Switch example has the published losses", "[router][switch][auxiliary]") {
  by_logits<2, sy::router::switch_top1, sy::capacity::fixed<2>> run;
  run.forward(example);
  // f = (0.8, 0.2) before dropping, p = (0.691166, 0.308834).
  CHECK(run.auxiliary.balance_first_choice == Catch::Approx(1.229399).margin(1e-6));
  CHECK(0.01 * run.auxiliary.balance_first_choice == Catch::Approx(0.012294).margin(1e-6));
  CHECK(run.auxiliary.z_loss == Catch::Approx(3.643169).margin(2e-6));
  CHECK(run.auxiliary.load_variation == Catch::Approx(0.6).epsilon(1e-6));
}

TEST_CASE("a prioritised queue keeps the tokens that the example drops", "[router][switch]") {
  by_logits<2, sy::router::switch_top1, sy::capacity::queued<sy::capacity::fixed<2>, sy::queue::priority>> run;
  run.forward(example);
  CHECK(run.dropped == std::vector<std::uint8_t>{0, 1, 1, 0, 0});
}

TEST_CASE("kept pairs and dropped pairs add up, and no expert takes more than its slots", "[router][switch]") {
  by_logits<7, sy::router::switch_top1, sy::capacity::fixed<3>> run;
  for (std::int64_t tokens : {1, 7, 33, 133}) {
    CAPTURE(tokens);
    std::vector<float> const logits = random_logits(tokens, 7, 1);
    run.forward(logits);
    std::int64_t const dropped = std::accumulate(run.dropped.begin(), run.dropped.end(), std::int64_t{0});
    CHECK(std::accumulate(run.counts.begin(), run.counts.end(), dropped) == tokens);
    CHECK(std::accumulate(run.load.begin(), run.load.end(), std::int64_t{0}) == tokens);
    std::vector<std::int64_t> slot(7);  // the next free slot: slots of an expert are given in token order, without gaps
    for (std::int64_t t = 0; t < tokens; ++t) {
      std::int64_t& next = slot[run.experts[t]];
      CHECK(bool(run.dropped[t]) == (next >= 3));
      next += !run.dropped[t];
    }
    CHECK(slot == run.counts);
  }
}

TEST_CASE("with a slot for every token nothing is dropped and the result is a loop over tokens", "[router][switch]") {
  by_logits<7, sy::router::switch_top1, sy::capacity::fixed<33>> run;
  std::vector<float> const logits = random_logits(33, 7, 2);
  run.forward(logits);
  CHECK(run.dropped == std::vector<std::uint8_t>(33, 0));
  for (std::int64_t t = 0; t < 33; ++t) {
    std::vector<float> const expected = run.expected_row(&logits[t * 7]);
    for (int i = 0; i < 7; ++i) CHECK(run.y[t * 7 + i] == Catch::Approx(expected[i]).epsilon(1e-5).margin(1e-7));
  }
}

TEST_CASE("perfect balance makes the balance loss one", "[router][switch][auxiliary]") {
  by_logits<4, sy::router::switch_top1, sy::capacity::dropless> run;
  std::vector<float> logits(8 * 4);
  // Logits so close that p is uniform to float accuracy; each expert is the first choice of two tokens.
  for (int t = 0; t < 8; ++t) logits[t * 4 + t % 4] = 1e-6f;
  run.forward(logits);
  CHECK(run.load == std::vector<std::int64_t>{2, 2, 2, 2});
  CHECK(run.auxiliary.balance_first_choice == Catch::Approx(1.0).margin(1e-6));
  CHECK(run.auxiliary.balance_all_choices == Catch::Approx(1.0).margin(1e-6));
  CHECK(run.auxiliary.load_variation == Catch::Approx(0.0).margin(1e-6));
}

TEST_CASE("renaming the experts changes no output", "[router][switch]") {
  constexpr int experts = 5, tokens = 29;
  by_logits<experts, sy::router::switch_top1, sy::capacity::dropless> run;
  std::vector<float> const x = random_logits(tokens, experts, 3);
  run.forward(x);
  std::vector<float> const y = run.y;
  std::vector<std::int32_t> const chosen = run.experts;

  auto renamed = run;  // expert e becomes expert to[e]: its router row and its matrices move
  int const to[experts] = {3, 0, 4, 1, 2};
  for (int e = 0; e < experts; ++e) {
    std::copy_n(run.identity.begin() + e * experts, experts, renamed.identity.begin() + to[e] * experts);
    std::copy_n(run.up.begin() + e * experts * experts, experts * experts,
                renamed.up.begin() + to[e] * experts * experts);
    std::copy_n(run.down.begin() + e * experts * experts, experts * experts,
                renamed.down.begin() + to[e] * experts * experts);
  }
  renamed.forward(x);
  for (int t = 0; t < tokens; ++t) CHECK(renamed.experts[t] == to[chosen[t]]);
  for (std::size_t i = 0; i < y.size(); ++i) CHECK(renamed.y[i] == Catch::Approx(y[i]).epsilon(1e-6).margin(1e-7));
}

TEST_CASE("a shared router in one layer gives the bits of Switch", "[router][shared]") {
  constexpr sy::shape dims{.hidden = 16, .intermediate = 24, .experts = 4, .top_k = 1};
  using own = sy::layer<dims, sy::router::switch_top1, sy::capacity::factor<5, 4>, sy::expert::mlp<sy::relu>>;
  using of_model = sy::layer<dims, sy::router::shared<sy::router::switch_top1>, sy::capacity::factor<5, 4>,
                             sy::expert::mlp<sy::relu>>;
  constexpr std::int64_t tokens = 37;
  std::vector<float> const x = random_logits(tokens, dims.hidden, 4),
                           router = random_logits(dims.experts, dims.hidden, 5);
  std::vector<float> const up = random_logits(dims.experts * dims.intermediate, dims.hidden, 6),
                           down = random_logits(dims.experts * dims.intermediate, dims.hidden, 7);
  std::vector<float> first(x.size()), second(x.size());
  std::vector<std::byte> workspace(std::max(own::workspace_bytes(tokens), of_model::workspace_bytes(tokens)));

  auto const up_proj = sy::weight_view<float>::packed(up.data(), dims.intermediate, dims.hidden);
  auto const down_proj = sy::weight_view<float>::packed(down.data(), dims.hidden, dims.intermediate);
  own::forward({.tokens = {x.data(), tokens, dims.hidden},
                .weights = {.router = {.weight = router.data()}, .up_proj = up_proj, .down_proj = down_proj},
                .output = {first.data(), tokens, dims.hidden},
                .workspace = workspace});
  of_model::forward({.tokens = {x.data(), tokens, dims.hidden},
                     .weights = {.up_proj = up_proj, .down_proj = down_proj},
                     .output = {second.data(), tokens, dims.hidden},
                     .workspace = workspace,
                     .shared_router = {.weight = router.data()}});
  CHECK(first == second);
}

TEST_CASE("layers that share a router choose the same experts for the same tokens", "[router][shared]") {
  constexpr sy::shape dims{.hidden = 16, .intermediate = 8, .experts = 6, .top_k = 1};
  using layer =
      sy::layer<dims, sy::router::shared<sy::router::switch_top1>, sy::capacity::dropless, sy::expert::mlp<sy::relu>>;
  constexpr std::int64_t tokens = 41;
  std::vector<float> const x = random_logits(tokens, dims.hidden, 8);
  std::vector<float> router = random_logits(dims.experts, dims.hidden, 9);
  std::vector<std::byte> workspace(layer::workspace_bytes(tokens));
  auto const choices = [&](unsigned seed) {  // in a layer with experts of its own
    std::vector<float> const up = random_logits(dims.experts * dims.intermediate, dims.hidden, seed),
                             down = random_logits(dims.experts * dims.intermediate, dims.hidden, seed + 1);
    std::vector<float> y(x.size());
    std::vector<std::int32_t> experts(tokens);
    layer::forward(
        {.tokens = {x.data(), tokens, dims.hidden},
         .weights = {.up_proj = sy::weight_view<float>::packed(up.data(), dims.intermediate, dims.hidden),
                     .down_proj = sy::weight_view<float>::packed(down.data(), dims.hidden, dims.intermediate)},
         .output = {y.data(), tokens, dims.hidden},
         .workspace = workspace,
         .shared_router = {.weight = router.data()},
         .decisions = {.experts = experts.data()}});
    return experts;
  };
  std::vector<std::int32_t> const before = choices(10);
  CHECK(choices(20) == before);
  for (int h = 0; h < dims.hidden; ++h) router[h] += 10.0f * x[h];  // token 0 now wants expert 0
  std::vector<std::int32_t> const after = choices(10);
  CHECK(after[0] == 0);
  CHECK(after != before);
  CHECK(choices(20) == after);
}

TEST_CASE("no tokens, one expert and no slots are sizes like any other", "[router][switch]") {
  SECTION("no tokens") {
    by_logits<4, sy::router::switch_top1, sy::capacity::fixed<2>> run;
    run.forward({});
    CHECK(run.load == std::vector<std::int64_t>(4, 0));
    CHECK(run.counts == std::vector<std::int64_t>(4, 0));
    CHECK(run.auxiliary.balance_first_choice == 0.0f);
    CHECK(run.auxiliary.z_loss == 0.0f);
  }
  SECTION("one expert") {
    by_logits<1, sy::router::switch_top1, sy::capacity::dropless> run;
    run.forward({1.5f, -2.0f, 3.0f});
    CHECK(run.y == std::vector<float>{1.5f, 0.0f, 3.0f});
    CHECK(run.weights == std::vector<float>{1, 1, 1});
    CHECK(run.auxiliary.balance_first_choice == Catch::Approx(1.0));
  }
  SECTION("no slots") {
    by_logits<4, sy::router::switch_top1, sy::capacity::fixed<0>> run;
    run.forward(random_logits(5, 4, 11));
    CHECK(run.dropped == std::vector<std::uint8_t>(5, 1));
    CHECK(run.y == std::vector<float>(20, 0.0f));
  }
  SECTION("a last group that is smaller") {
    by_logits<2, sy::router::switch_top1, sy::capacity::fixed<1>> run;
    run.forward({1, 0, 1, 0, 1, 0, 1, 0, 1, 0}, 2);
    CHECK(run.dropped == std::vector<std::uint8_t>{0, 1, 0, 1, 0});
  }
}

TEST_CASE("a tie goes to the lower expert id", "[router][switch]") {
  by_logits<4, sy::router::switch_top1, sy::capacity::dropless> run;
  run.forward({1, 1, 1, 1, 0, 2, 2, 0, 0, 0, 3, 3});
  CHECK(run.experts == std::vector<std::int32_t>{0, 1, 2});
  CHECK(run.weights[0] == Catch::Approx(0.25));
}

TEST_CASE("routes are those of the reference", "[router][switch]") {
  by_logits<7, sy::router::switch_top1, sy::capacity::fixed<4>> run;
  reference::config const config{.experts = 7, .top_k = 1, .slots = 4, .tokens_per_group = 20};
  std::vector<float> const logits = random_logits(133, 7, 12);
  run.forward(logits, 20);
  reference::result const expected = reference::decide(config, {logits.begin(), logits.end()}, {}, 133);
  CHECK(std::vector<int>(run.experts.begin(), run.experts.end()) == expected.ids);
  CHECK(run.dropped == expected.dropped);
  CHECK(run.counts == expected.counts);
  CHECK(run.load == expected.load);
  for (std::size_t i = 0; i < run.weights.size(); ++i)
    CHECK(run.weights[i] == Catch::Approx(expected.weights[i]).epsilon(1e-6));
  CHECK(run.auxiliary.balance_first_choice == Catch::Approx(expected.aux.balance_first_choice).epsilon(1e-6));
  CHECK(run.auxiliary.balance_kept_choice == Catch::Approx(expected.aux.balance_kept_choice).epsilon(1e-6));
  CHECK(run.auxiliary.z_loss == Catch::Approx(expected.aux.z_loss).epsilon(1e-6));
}
