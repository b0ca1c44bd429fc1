#include <switchyard/switchyard.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "catch.hpp"

namespace sy = switchyard;
using sy::router::stratified;

namespace {

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

/// Experts that multiply a token by their number plus one: max(x, 0) - max(-x, 0).
template <class Router, class Capacity, int Experts, int TopK, class Element = float>
using multipliers = sy::layer<sy::shape{.hidden = 2, .intermediate = 4, .experts = Experts, .top_k = TopK}, Router,
                              Capacity, sy::expert::mlp<sy::relu>, sy::backend::cpu, Element>;

struct outcome {
  std::vector<float> output, weights;
  std::vector<std::int32_t> experts;
  std::vector<std::uint8_t> dropped, passes;
  std::vector<std::int64_t> counts, load;
  sy::auxiliary_values auxiliary;
};

/// A call of such a layer. Norms are plain, and gates are zero but for their biases where nothing else is said.
template <class Layer>
struct call {
  static constexpr int experts = Layer::dims.experts, top_k = Layer::dims.top_k,
                       strata = Layer::router::schedule::passes;
  std::vector<float> tokens, residual;
  std::vector<float> gate[strata], bias[strata];
  std::vector<std::uint8_t> active = {};
  float epsilon = 0.0f;
  std::vector<float> norm_weight = {1.0f, 1.0f}, norm_bias = {0.0f, 0.0f};

  call(std::vector<float> x, std::vector<float> before) : tokens(x), residual(before) {
    for (int i = 0; i < strata; ++i) {
      gate[i].resize(2 * (experts - Layer::router::schedule::first_expert(i)));
      bias[i].resize(experts - Layer::router::schedule::first_expert(i));
    }
  }

  outcome run() const {
    std::int64_t const count = static_cast<std::int64_t>(tokens.size()) / 2, pairs = strata * count * top_k;
    std::vector<float> up(experts * 8), down(experts * 8);
    for (int e = 0; e < experts; ++e) {
      for (int i = 0; i < 4; ++i) {
        float const sign = i < 2 ? 1.0f : -1.0f;
        up[(e * 4 + i) * 2 + i % 2] = sign;
        down[(e * 2 + i % 2) * 4 + i] = sign * static_cast<float>(e + 1);
      }
    }
    outcome out{.output = std::vector<float>(tokens.size()),
                .weights = std::vector<float>(pairs),
                .experts = std::vector<std::int32_t>(pairs),
                .dropped = std::vector<std::uint8_t>(pairs),
                .passes = std::vector<std::uint8_t>(count),
                .counts = std::vector<std::int64_t>(experts),
                .load = std::vector<std::int64_t>(experts),
                .auxiliary = {}};
    std::vector<std::byte> scratch(Layer::workspace_bytes(count));
    typename Layer::args args{};
    args.tokens = Layer::rows(tokens.data(), count);
    args.inputs.residual = Layer::rows(residual.data(), count);
    for (int i = 0; i < strata; ++i) {
      args.weights.router.stratum[i].weight = gate[i].data();
      if constexpr (Layer::router_traits.bias) args.weights.router.stratum[i].bias = bias[i].data();
      if constexpr (Layer::router::schedule::form.norms) {
        args.inputs.norm.after[i] = {norm_weight.data(), norm_bias.data(), epsilon};
      }
    }
    args.weights.up_proj = Layer::in_proj(up.data());
    args.weights.down_proj = Layer::out_proj(down.data());
    args.output = Layer::rows(out.output.data(), count);
    args.workspace = scratch;
    args.active = active.empty() ? nullptr : active.data();
    args.decisions.experts = out.experts.data();
    args.decisions.weights = out.weights.data();
    args.decisions.dropped = out.dropped.data();
    args.decisions.counts = out.counts.data();
    args.decisions.load = out.load.data();
    args.report.passes = out.passes.data();
    args.auxiliary = &out.auxiliary;
    Layer::forward(args);
    return out;
  }

  std::string error() const {
    try {
      run();
    } catch (sy::error const& e) {
      return e.what();
    }
    return "";
  }
};

void check_close(std::vector<float> const& got, std::vector<float> const& expected, float tolerance = 2e-6f) {
  REQUIRE(got.size() == expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    INFO("number " << i);
    CHECK(std::abs(got[i] - expected[i]) <= tolerance * std::max(1.0f, std::abs(expected[i])));
  }
}

using fairseq_capacity = sy::capacity::factor<2, 1, sy::capacity::rounding::fairseq>;
using biased = sy::router::with_bias<sy::router::softmax_top_k>;
using two_strata = stratified<biased, 2, 1>;

/// The hand-checked case of the method: three experts in strata {0, 1} and {2}, token A (1, 3) and token B (2, -2), which the
/// block's norm makes (-1, 1) and (1, -1). Gate 0 gives A the logits (2, 0, 1) and B (0, 1, 3).
template <class Router, class Capacity = fairseq_capacity>
call<multipliers<Router, Capacity, 3, 2>> hand_case() {
  call<multipliers<Router, Capacity, 3, 2>> c({-1, 1, 1, -1}, {1, 3, 2, -2});
  c.gate[0] = {-0.5f, 0.5f, 0.25f, -0.25f, 0.5f, -0.5f};
  c.bias[0] = {1.0f, 0.5f, 2.0f};
  return c;
}

}  // namespace

TEST_CASE("the hand-checked stratified block", "[router][stratified]") {
  outcome const got = hand_case<two_strata>().run();
  check_close(got.output, {-1, 1, 1, -1});
  CHECK(got.passes == std::vector<std::uint8_t>{2, 1});
  CHECK(got.experts == std::vector<std::int32_t>{0, 2, 2, 1, 2, -1, -1, -1});
  check_close(got.weights, {0.731059f, 0.268941f, 0.880797f, 0.119203f, 1, 0, 0, 0});
  CHECK(got.dropped == std::vector<std::uint8_t>(8));
  CHECK(got.counts == std::vector<std::int64_t>{1, 1, 3});
  CHECK(got.load == got.counts);
  CHECK(std::abs(got.auxiliary.balance_first_choice - 1.173415f) < 2e-6f);  // the mean of 1.346831 and 1
}

TEST_CASE("weights that are normalised after dropping are the same where nothing is dropped", "[router][stratified]") {
  using raw = stratified<sy::router::with_bias<sy::router::softmax_top_k_raw>, 2, 1>;
  outcome const got = hand_case<raw, sy::capacity::renormalised<fairseq_capacity>>().run();
  check_close(got.weights, {0.731059f, 0.268941f, 0.880797f, 0.119203f, 1, 0, 0, 0});
  // Probabilities are those of all experts of the gate.
  outcome const plain = hand_case<raw>().run();
  check_close(plain.weights, {0.665241f, 0.244728f, 0.843795f, 0.114195f, 1, 0, 0, 0});
}

TEST_CASE("the residual of a later pass is the normalised token, or the one before the norm", "[router][stratified]") {
  // Of two features a norm leaves nothing but what epsilon does to their deviation. After pass 0 token A is
  // (-0.537883, 4.537883), 2.537883 about a mean of 2; expert 2 makes three times of what the norm gives.
  auto aliased = hand_case<two_strata>();
  auto separate = hand_case<sy::router::with_separate_residual<two_strata>>();
  aliased.epsilon = separate.epsilon = 9.0f;
  auto const normalised = [](float deviation) { return deviation / std::sqrt(deviation * deviation + 9.0f); };
  float const before = 2.537883f, after = normalised(before);
  check_close({aliased.run().output[1]}, {normalised(3 * after + after)}, 1e-5f);
  check_close({separate.run().output[1]}, {normalised(3 * after + before)}, 1e-5f);
}

TEST_CASE("without norms a pass hands its sum to the next one", "[router][stratified]") {
  using router = sy::router::without_stratum_norms<stratified<sy::router::softmax_top_k, 1, 1>>;
  call<multipliers<router, sy::capacity::dropless, 2, 1>> c({-1, 1}, {1, 3});
  c.gate[0] = {-1, 1, 1, -1};  // expert 0 first, then expert 1
  // 1 (-1, 1) + (1, 3) = (0, 4), then 2 (0, 4) + (0, 4)
  check_close(c.run().output, {0, 12});
}

TEST_CASE("the residual before the norm has the hand-checked numbers", "[router][stratified]") {
  // The norm after the last stratum undoes itself for token A: (h - 2) / 5.537883 * 5.537883 + 2.
  using layer = multipliers<sy::router::with_separate_residual<two_strata>, fairseq_capacity, 3, 2>;
  auto c = hand_case<sy::router::with_separate_residual<two_strata>>();
  std::vector<float> const plain_weight = {1, 1}, plain_bias = {0, 0}, last_weight = {5.537883f, 5.537883f},
                           last_bias = {2, 2};
  std::vector<float> up(24), down(24), y(4);
  for (int e = 0; e < 3; ++e) {
    for (int i = 0; i < 4; ++i) {
      float const sign = i < 2 ? 1.0f : -1.0f;
      up[(e * 4 + i) * 2 + i % 2] = sign;
      down[(e * 2 + i % 2) * 4 + i] = sign * static_cast<float>(e + 1);
    }
  }
  std::vector<std::byte> scratch(layer::workspace_bytes(2));
  layer::forward(
      {.tokens = layer::rows(c.tokens.data(), 2),
       .weights = {.router = {.stratum = {{c.gate[0].data(), c.bias[0].data()}, {c.gate[1].data(), c.bias[1].data()}}},
                   .up_proj = layer::in_proj(up.data()),
                   .down_proj = layer::out_proj(down.data())},
       .output = layer::rows(y.data(), 2),
       .workspace = scratch,
       .inputs = {
           .residual = layer::rows(c.residual.data(), 2),
           .norm = {{{plain_weight.data(), plain_bias.data(), 0.0f}, {last_weight.data(), last_bias.data(), 0.0f}}}}});
  check_close({y[0], y[1]}, {-3.537883f, 7.537883f}, 1e-5f);
}

TEST_CASE("the published capacities are rounded first and doubled then, by the experts of the gate",
          "[router][stratified]") {
  auto const slots = [](int experts, std::int64_t tokens) {
    return fairseq_capacity::slots_per_expert({.hidden = 1, .intermediate = 1, .experts = experts, .top_k = 2}, tokens);
  };
  CHECK(slots(3, 7) == 6);
  CHECK(slots(4, 10) == 6);
  using in_evaluation = sy::capacity::share_of_tokens<1, 4>;
  CHECK(in_evaluation::slots_per_expert({.hidden = 1, .intermediate = 1, .experts = 4, .top_k = 2}, 41) == 11);
}

TEST_CASE("capacity is that of the experts and tokens of a pass", "[router][stratified]") {
  // Six tokens choose expert 0, and then, three experts being left, expert 1: ceil(6 / 4) and ceil(6 / 3) are kept.
  using router = stratified<sy::router::with_bias<sy::router::switch_top1>, 1, 3>;
  using layer = multipliers<router, sy::capacity::factor<1>, 4, 1>;
  call<layer> c(std::vector<float>{1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6}, std::vector<float>(12, 0.5f));
  c.bias[0] = {9, 0, 0, 0};
  c.bias[1] = {9, 0, 0};
  c.epsilon = 1e-5f;
  outcome const got = c.run();
  CHECK(got.counts == std::vector<std::int64_t>{2, 2, 0, 0});
  CHECK(got.load == std::vector<std::int64_t>{6, 6, 0, 0});
  CHECK(got.dropped == std::vector<std::uint8_t>{0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1});
  CHECK(got.passes == std::vector<std::uint8_t>(6, 2));  // dropped tokens climb, too
}

TEST_CASE("with no capacity a token leaves with the norms of its residuals", "[router][stratified]") {
  using router = stratified<sy::router::softmax_top_k, 1, 1, 1>;
  call<multipliers<router, sy::capacity::fixed<0>, 3, 2>> c({-1, 1}, {1, 5});
  c.epsilon = 1.0f;
  c.gate[0] = c.gate[1] = c.gate[2] = {-1, 1, 1, -1, 1, -1};
  c.gate[1].resize(4);
  c.gate[2].resize(2);
  outcome const got = c.run();
  CHECK(got.passes == std::vector<std::uint8_t>{3});
  float x = 2;  // about the mean
  for (int pass = 0; pass < 3; ++pass) x /= std::sqrt(x * x + 1.0f);
  check_close(got.output, {-x, x});
}

TEST_CASE("one stratum without a norm is the layer of its base router and a residual", "[router][stratified]") {
  using router = sy::router::without_stratum_norms<stratified<biased, 3>>;
  auto c = hand_case<router>();
  outcome const got = c.run();
  // Factors of pass 0: 1.537883 and 2.880797.
  check_close(got.output, {1 - 1.537883f, 3 + 1.537883f, 2 + 2.880797f, -2 - 2.880797f});
  CHECK(got.passes == std::vector<std::uint8_t>{1, 1});
}

TEST_CASE("a token goes from a lower stratum to any higher one, and skips what lies between", "[router][stratified]") {
  using router = stratified<sy::router::switch_top1, 1, 2, 1, 2>;
  using layer = multipliers<router, sy::capacity::dropless, 6, 1>;
  CHECK(router::schedule::first_expert(0) == 0);
  CHECK(router::schedule::first_expert(2) == 3);
  CHECK(router::schedule::first_expert(4) == 6);
  int const stratum[] = {0, 1, 1, 2, 3, 3};
  for (int e = 0; e < 6; ++e) CHECK(router::schedule::stratum_of(e) == stratum[e]);
  for (int e = 0; e < 6; ++e) {
    INFO("first choice " << e);
    call<layer> c({-1, 1}, {0, 0});
    c.gate[0][2 * e + 1] = 50;  // after the norm the token is the same again, and every gate chooses its first expert
    outcome const got = c.run();
    CHECK(got.passes[0] == 1 + 3 - stratum[e]);
    CHECK(got.experts[0] == e);
    for (int i = 1; i < 4; ++i) CHECK(got.experts[i] == (i <= stratum[e] ? -1 : router::schedule::first_expert(i)));
  }
}

TEST_CASE("only the first choice says where a token goes", "[router][stratified]") {
  using layer = multipliers<stratified<biased, 2, 2>, sy::capacity::dropless, 4, 2>;
  call<layer> c({-1, 1, 1, -1}, {0, 0, 0, 0});
  c.gate[0] = {0, 3, 0, 0, 0, 0, 3, 0};  // expert 0 for one token and 3 for the other
  c.bias[0] = {5, 0, 0, 5};              // and that one is the second choice of each
  outcome const got = c.run();
  CHECK(got.experts == std::vector<std::int32_t>{0, 3, 3, 0, 2, 3, -1, -1});
  CHECK(got.passes == std::vector<std::uint8_t>{2, 1});
}

TEST_CASE("padding makes no pass, takes no slot and gives zeros", "[router][stratified]") {
  auto c = hand_case<two_strata>();
  outcome const alone = c.run();
  c.tokens.insert(c.tokens.begin(), {not_a_number, not_a_number});
  c.residual.insert(c.residual.begin(), {not_a_number, not_a_number});
  c.active = {0, 1, 1};
  outcome const got = c.run();
  check_close(got.output, {0, 0, alone.output[0], alone.output[1], alone.output[2], alone.output[3]}, 0.0f);
  CHECK(got.passes == std::vector<std::uint8_t>{0, 2, 1});
  CHECK(got.counts == alone.counts);
  CHECK(got.auxiliary.balance_first_choice == alone.auxiliary.balance_first_choice);
}

TEST_CASE("no tokens are nothing to do", "[router][stratified]") {
  call<multipliers<two_strata, fairseq_capacity, 3, 2>> c({}, {});
  outcome const got = c.run();
  CHECK(got.counts == std::vector<std::int64_t>(3));
  CHECK(got.auxiliary.balance_first_choice == 0.0f);
}

TEST_CASE("logits that are not finite are named by the numbers of the call, in every pass", "[router][stratified]") {
  auto c = hand_case<two_strata>();
  c.bias[0][2] = not_a_number;
  CHECK(c.error().find(" for token 0, expert 2") != std::string::npos);
  c = hand_case<two_strata>();
  // Only token A makes a second pass; a padding row before it moves its number.
  c.tokens.insert(c.tokens.begin(), {0, 0});
  c.residual.insert(c.residual.begin(), {0, 0});
  c.active = {0, 1, 1};
  c.bias[1][0] = not_a_number;
  CHECK(c.error().find(" for token 1, expert 2") != std::string::npos);
}

TEST_CASE("what a stratified layer lacks or cannot say is refused by name", "[router][stratified]") {
  using layer = multipliers<two_strata, fairseq_capacity, 3, 2>;
  std::vector<float> x(8), gate(6), matrices(24), y(8), norm(2);
  std::vector<std::byte> scratch(layer::workspace_bytes(4));
  std::uint8_t passes[4];
  auto const error_of = [&](auto change) -> std::string {
    layer::args args{.tokens = layer::rows(static_cast<float const*>(x.data()), 4),
                     .weights = {.router = {.stratum = {{gate.data(), gate.data()}, {gate.data(), gate.data()}}},
                                 .up_proj = layer::in_proj(matrices.data()),
                                 .down_proj = layer::out_proj(matrices.data())},
                     .output = layer::rows(y.data(), 4),
                     .workspace = scratch,
                     .inputs = {.residual = layer::rows(static_cast<float const*>(x.data()), 4),
                                .norm = {{{norm.data(), norm.data()}, {norm.data(), norm.data()}}}}};
    change(args);
    try {
      layer::forward(args);
    } catch (sy::error const& e) {
      return e.what();
    }
    return "";
  };
  CHECK(error_of([](auto&) {}) == "");
  CHECK(error_of([&](auto& a) { a.report.passes = passes; }) == "");
  CHECK(error_of([](auto& a) { a.inputs.residual = {}; }) ==
        "switchyard: layer::forward, inputs.residual: expected 4 x 2 (tokens x hidden), got 0 x 0");
  CHECK(error_of([](auto& a) { a.inputs.residual.data = nullptr; }) ==
        "switchyard: layer::forward, inputs.residual: expected a matrix, got a null pointer");
  CHECK(error_of([](auto& a) { a.weights.router.stratum[1].weight = nullptr; }) ==
        "switchyard: layer::forward, weights.router.stratum[1].weight: expected [experts, hidden] float, got a null "
        "pointer");
  CHECK(error_of([](auto& a) { a.weights.router.stratum[0].bias = nullptr; }) ==
        "switchyard: layer::forward, weights.router.stratum[0].bias: expected [experts] float, got a null pointer");
  CHECK(error_of([](auto& a) { a.inputs.norm.after[1].bias = nullptr; }) ==
        "switchyard: layer::forward, inputs.norm.after[1].bias: expected [hidden] float, got a null pointer");
  CHECK(error_of([](auto& a) {
          a.inputs.norm.after[0].epsilon = not_a_number;
        }).find("switchyard: layer::forward, inputs.norm.after[0].epsilon: expected 0 or more, got ") == 0);
  CHECK(error_of([](auto& a) { a.tokens_per_group = 2; }) ==
        "switchyard: layer::forward, tokens_per_group: expected 0, for each pass of router::stratified is one group, "
        "got 2");
  CHECK(error_of([&](auto& a) {
          a.output = {x.data() + 2, 4, 2};
        }).find("layer::forward, output: expected memory apart from") != std::string::npos);
  std::vector<float> other(10);
  CHECK(
      error_of([&](auto& a) {
        a.inputs.residual = {other.data(), 4, 2};
        a.output = {other.data() + 2, 4, 2};
      }) ==
      "switchyard: layer::forward, output: expected memory apart from inputs.residual, or the same view, got a matrix "
      "that overlaps inputs.residual");
  CHECK(
      error_of([&](auto& a) {
        a.inputs.residual = {reinterpret_cast<float const*>(scratch.data()), 4, 2};
      }) ==
      "switchyard: layer::forward, workspace: expected memory apart from all else that the call reads and writes, got "
      "memory that overlaps inputs.residual");
  CHECK(error_of([&](auto& a) {
          a.inputs.residual = {other.data(), 4, 2};
          a.output = {other.data(), 4, 2};
        }) == "");
}

TEST_CASE("the parameters of a stratified layer are all gates and norms, and one pass is what it costs at least",
          "[router][stratified]") {
  using layer =
      sy::layer<sy::shape{.hidden = 8, .intermediate = 4, .experts = 6, .top_k = 2},
                stratified<sy::router::softmax_top_k, 2, 4>, sy::capacity::dropless, sy::expert::mlp<sy::relu>>;
  using base = sy::layer<layer::dims, sy::router::softmax_top_k, layer::capacity, layer::expert>;
  CHECK(sy::costs<layer>(5).parameters == sy::costs<base>(5).parameters + 4 * 8 + 2 * 2 * 8);
  CHECK(sy::costs<layer>(5).flops == sy::costs<base>(5).flops);
  using omni = sy::layer<layer::dims, sy::router::shared<layer::router>, layer::capacity, layer::expert>;
  CHECK(sy::costs<omni>(5).parameters == 6 * 2 * 8 * 4 + 2 * 2 * 8);
  CHECK(sy::describe<layer>() == "stratified<softmax_top_k,2,4>:2of6/dropless/mlp<relu>/8x4/cpu/float");
}
