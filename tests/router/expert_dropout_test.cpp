#include <switchyard/router/expert_dropout.hpp>
#include <switchyard/switchyard.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <type_traits>
#include <vector>

#include "catch.hpp"
#include "router/lanes.hpp"

/// Expert dropout by hand. Lists of layers.hpp compare it with the reference.
namespace sy = switchyard;
using namespace switchyard::router;
using selection::group_score;

namespace {

constexpr float closed = -sy::infinity;
float const ln2 = std::log(2.0f), ln3 = std::log(3.0f);

/// A mask that says itself what it hides.
struct hidden {
  unsigned experts;  ///< a bit for each
  bool hides(int expert) const { return (experts >> expert & 1u) != 0; }
};

template <class Router, int TopK, std::size_t Experts>
sy::route<TopK> select(float const (&logits)[Experts], unsigned mask, sy::router_weights const& weights = {}) {
  sy::per_expert<static_cast<int>(Experts), sy::serial_lanes> mine;
  for (std::size_t e = 0; e < Experts; ++e) mine.value[e] = logits[e];
  return Router::template select_masked<TopK>(sy::serial_lanes{}, mine, weights, hidden{mask});
}

void check(sy::route<2> const& got, int first, double first_weight, int second, double second_weight) {
  CHECK(got.expert[0] == first);
  CHECK(got.expert[1] == second);
  CHECK(got.weight[0] == Catch::Approx(first_weight));
  CHECK(got.weight[1] == Catch::Approx(second_weight));
}

}  // namespace

TEST_CASE("masked experts are not chosen, and what is left is not rescaled", "[router]") {
  float const gates[] = {0.0f, ln3, -ln3};  // sigmoids 0.5, 0.75, 0.25
  check(select<sigma_moe, 2>(gates, 0b000), 1, 0.75, 0, 0.5);
  check(select<sigma_moe, 2>(gates, 0b010), 0, 0.5, 2, 0.25);
  check(select<sigma_moe, 2>(gates, 0b001), 1, 0.75, 2, 0.25);
  float const shares[] = {0.0f, ln2, ln3};  // softmax 1/6, 1/3, 1/2
  check(select<softmax_top_k_raw, 2>(shares, 0b100), 1, 1.0 / 3, 0, 1.0 / 6);
  check(select<softmax_top_k, 2>(shares, 0b100), 1, 2.0 / 3, 0, 1.0 / 3);
  check(select<top_k_softmax, 2>(shares, 0b010), 2, 0.75, 0, 0.25);
  CHECK(select<softmax_top_k_raw, 2>(shares, 0b100).priority == Catch::Approx(1.0 / 3));
}

TEST_CASE("where too few experts are left, masked ones follow by their scores with no weight", "[router]") {
  float const gates[] = {0.0f, ln3, -ln3};
  check(select<sigma_moe, 2>(gates, 0b011), 2, 0.25, 1, 0.0);
  CHECK(select<sigma_moe, 2>(gates, 0b011).priority == 0.25f);
  check(select<sigma_moe, 2>(gates, 0b111), 1, 0.0, 0, 0.0);
  CHECK(select<sigma_moe, 2>(gates, 0b111).priority == 0.0f);
  float const shares[] = {0.0f, ln2, ln3};
  check(select<softmax_top_k, 2>(shares, 0b110), 0, 1.0, 2, 0.0);
  check(select<softmax_top_k_raw, 2>(shares, 0b110), 0, 1.0 / 6, 2, 0.0);
  check(select<top_k_softmax, 2>(shares, 0b110), 0, 1.0, 2, 0.0);
  check(select<sigmoid_top_k, 2>(gates, 0b101), 1, 0.75, 0, 0.0);
  check(select<sigmoid_top_k, 2>(gates, 0b111), 1, 0.0, 0, 0.0);
  check(select<top_k<scores::softmax, selection::best, weighting::l2>, 2>(shares, 0b101), 1, 1.0, 2, 0.0);
  for (float w : select<softmax_top_k, 2>(shares, 0b111).weight) CHECK(w == 0.0f);
}

TEST_CASE("an expert that is closed is none that is masked", "[router]") {
  float const logits[] = {0.5f, closed, 0.25f, 0.0f};
  sy::route<2> const r = select<with_bias<softmax_top_k>, 2>(logits, 0b0101);
  CHECK(r.expert[0] == 3);
  CHECK(r.expert[1] == 0);
  CHECK(r.weight[0] == 1.0f);
  sy::route<3> const few = select<with_bias<softmax_top_k>, 3>({0.5f, closed, closed, 0.0f}, 0b0001);
  CHECK(few.expert[2] == -1);

  using corrected = top_k<scores::sigmoid, selection::corrected, weighting::sum>;
  float const bias[] = {closed, 0.0f, 0.0f, 1.0f}, close[] = {2.0f, 1.0f, 0.5f, 0.0f};
  check(select<corrected, 2>(close, 0b0100, {.correction_bias = bias}), 3, 0.5 / (0.5 + 1.0 / (1.0 + std::exp(-1.0))),
        1, 1.0 - 0.5 / (0.5 + 1.0 / (1.0 + std::exp(-1.0))));
  // Masked ones follow by their scores: expert 1 before 3, whose bias would come first.
  check(select<corrected, 2>(close, 0b1011, {.correction_bias = bias}), 2, 1.0, 1, 0.0);
}

TEST_CASE("groups are judged by what is left of them", "[router]") {
  using in_groups = top_k<scores::softmax, selection::grouped<2, 1, group_score::max>, weighting::sum>;
  float const logits[] = {3.0f, 0.0f, 2.0f, 1.0f};
  check(select<in_groups, 2>(logits, 0b0000), 0, 1.0 / (1.0 + std::exp(-3.0)), 1, 1.0 - 1.0 / (1.0 + std::exp(-3.0)));
  check(select<in_groups, 2>(logits, 0b0001), 2, 1.0 / (1.0 + std::exp(-1.0)), 3, 1.0 - 1.0 / (1.0 + std::exp(-1.0)));
  check(select<in_groups, 2>(logits, 0b1001), 2, 1.0, 0, 0.0);
}

namespace {

template <class Router, int Experts, int TopK>
void check_lanes() {
  std::mt19937 random(5);
  for (std::int64_t token = 0; token < 100; ++token) {
    std::vector<float> logits;
    for (int e = 0; e < Experts; ++e) logits.push_back(static_cast<float>(random() % 16) / 8.0f);  // with ties
    sy::expert_dropout const from{.seed = 3, .first_token = 7};
    auto const decide = [&](auto lanes) {
      return sy::decide<Router, TopK>(lanes, emulated::deal<Experts>(lanes, logits), {}, from, token);
    };
    sy::route<TopK> const alone = decide(sy::serial_lanes{});
    for (auto const& mine : emulated::run<8>(decide)) {
      for (int k = 0; k < TopK; ++k) {
        CHECK(mine.expert[k] == alone.expert[k]);
        CHECK(std::abs(mine.weight[k] - alone.weight[k]) <= 1e-6f);
      }
      CHECK(std::abs(mine.priority - alone.priority) <= 1e-6f);
    }
  }
}

}  // namespace

TEST_CASE("every group of lanes masks the same experts", "[router]") {
  check_lanes<with_expert_dropout<sigma_moe, 1, 5>, 21, 4>();
  check_lanes<with_expert_dropout<softmax_top_k, 3, 4>, 8, 4>();
  check_lanes<scaled<with_expert_dropout<top_k_softmax, 9, 10>, 3, 2>, 19, 6>();
}

TEST_CASE("the mask is one of independent numbers, for each token and expert", "[router]") {
  using router = with_expert_dropout<sigma_moe, 1, 20>;
  constexpr int experts = 64, tokens = 4000;
  std::vector<int> of_expert(experts);
  int all = 0, neighbours = 0, in_a_row = 0;
  std::vector<bool> before(experts);
  for (int t = 0; t < tokens; ++t) {
    sy::router::expert_mask mask = router::mask_of({.seed = 11}, t, experts);
    bool last = false;
    for (int e = 0; e < experts; ++e) {
      bool const hides = mask.hides(e);
      all += hides;
      of_expert[static_cast<std::size_t>(e)] += hides;
      neighbours += hides && last;
      in_a_row += hides && before[static_cast<std::size_t>(e)];
      before[static_cast<std::size_t>(e)] = last = hides;
    }
  }
  // Counts of independent events stay within five deviations of what is expected.
  auto const check_count = [](int count, double trials, double probability) {
    CHECK(std::abs(count - trials * probability) < 5.0 * std::sqrt(trials * probability * (1.0 - probability)));
  };
  check_count(all, double(experts) * tokens, 0.05);
  for (int count : of_expert) check_count(count, tokens, 0.05);
  check_count(neighbours, (experts - 1.0) * tokens, 0.0025);
  check_count(in_a_row, experts * (tokens - 1.0), 0.0025);
}

TEST_CASE("a mask is made of documented numbers, in whatever order it is asked", "[router]") {
  sy::counter_random const random{17, std::uint64_t{1} << 63};
  using router = shared<with_expert_dropout<sigma_moe, 1, 3>>;
  for (std::int64_t token : {0, 1, 5}) {
    sy::router::expert_mask upwards = router::mask_of({.seed = 17, .first_token = 40}, token, 7), downwards = upwards;
    std::vector<bool> up, expected;
    for (int e = 0; e < 7; ++e) {
      up.push_back(upwards.hides(e));
      expected.push_back(random.uniform(static_cast<std::uint64_t>((40 + token) * 7 + e)) < 1.0f / 3.0f);
    }
    CHECK(up == expected);
    for (int e = 6; e >= 0; --e) CHECK(downwards.hides(e) == up[static_cast<std::size_t>(e)]);
  }
  sy::router::expert_mask none = router::mask_of({}, 0, 7);
  for (int e = 0; e < 7; ++e) CHECK_FALSE(none.hides(e));
}

namespace {

/// Experts that multiply by their number plus one, of which a token of x has the logits x times those of `router`.
template <class Router>
struct call {
  static constexpr int experts = 6, top_k = 2;
  using layer = sy::layer<sy::shape{1, 1, experts, top_k}, Router, sy::capacity::dropless, sy::expert::mlp<sy::relu>>;
  std::vector<float> y;
  std::vector<std::int32_t> chosen;
  std::vector<float> weights;

  template <class Set>
  call(std::vector<float> const& x, Set set) : y(x.size()), chosen(x.size() * top_k), weights(x.size() * top_k) {
    float const up[] = {1, 2, 3, 4, 5, 6}, down[] = {1, 1, 1, 1, 1, 1},
                router[] = {-0.5f, 2.0f, 0.25f, -1.0f, 1.0f, 0.0f};
    auto const rows = static_cast<std::int64_t>(x.size());
    std::vector<std::byte> scratch(layer::workspace_bytes(rows));
    typename layer::args args{};
    args.tokens = layer::rows(x.data(), rows);
    args.weights.router.weight = router;
    args.weights.up_proj = layer::in_proj(up);
    args.weights.down_proj = layer::out_proj(down);
    args.output = layer::rows(y.data(), rows);
    args.workspace = scratch;
    args.decisions.experts = chosen.data();
    args.decisions.weights = weights.data();
    set(args);
    layer::forward(args);
  }
};

}  // namespace

TEST_CASE("without a seed nothing is masked, and parts of a batch have the masks of the whole", "[router]") {
  std::vector<float> const x{1.0f, -0.5f, 0.25f, 2.0f, 1.5f, -2.0f, 0.75f, 0.125f};
  using trained = call<with_expert_dropout<sigma_moe, 1, 2>>;
  call<sigma_moe> const plain(x, [](auto&) {});
  trained const evaluated(x, [](auto&) {});
  CHECK(evaluated.chosen == plain.chosen);
  CHECK(evaluated.weights == plain.weights);
  CHECK(evaluated.y == plain.y);

  trained const whole(x, [](auto& args) { args.inputs = {.seed = 4}; });
  CHECK_FALSE(whole.chosen == plain.chosen);
  trained const other(x, [](auto& args) { args.inputs = {.seed = 5}; });
  CHECK_FALSE(whole.chosen == other.chosen);
  trained const part({x.begin() + 3, x.end()}, [](auto& args) { args.inputs = {.seed = 4, .first_token = 3}; });
  CHECK(part.chosen == std::vector<std::int32_t>(whole.chosen.begin() + 6, whole.chosen.end()));
  CHECK(part.y == std::vector<float>(whole.y.begin() + 3, whole.y.end()));

  CHECK_THROWS_WITH(
      trained(x, [](auto& args) { args.inputs = {.seed = 4, .first_token = -1}; }),
      "switchyard: layer::forward, inputs.first_token: expected the number of the first token, at least 0, got -1");
}
