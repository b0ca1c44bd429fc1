#include "support/adapters.hpp"

#include <switchyard/switchyard.hpp>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "catch.hpp"

/// Low-rank adapters on experts: by hand, against the formula, and what is refused.
using namespace support;

namespace {

using layers = adapter_layers<sy::backend::cpu>::type;
using first = std::tuple_element_t<0, layers>;

}  // namespace

TEST_CASE("an adapter on an expert by hand", "[adapters]") {
  // Both maps are the identity. Adapter 1 has A = (3, 0) and B = (1, 2) in the first: (1, 1) + 0.5 (1, 2) 3 = (2.5, 4).
  using layer = sy::layer<sy::shape{2, 2, 1, 1}, sy::router::precomputed, sy::capacity::dropless,
                          sy::expert::adapters<2, 1, sy::expert::mlp<sy::relu>>>;
  std::vector<float> const identity{1, 0, 0, 1}, zeros(4), a{9, 9, 3, 0}, b{9, 9, 1, 2}, x{1, 1, 1, 1}, scale{1, 0.5f},
      ones{1, 1};
  std::vector<std::int32_t> const expert{0, 0}, adapter{-1, 1};
  std::vector<float> y(4);
  std::vector<std::byte> scratch(layer::workspace_bytes(2));
  layer::forward({.tokens = layer::rows(x.data(), 2),
                  .weights = {.up_proj = layer::in_proj(identity.data(), a.data(), b.data()),
                              .down_proj = layer::out_proj(identity.data(), zeros.data(), zeros.data())},
                  .output = layer::rows(y.data(), 2),
                  .workspace = scratch,
                  .inputs = {expert.data(), ones.data()},
                  .expert_inputs = {.adapter = adapter.data(), .scale = scale.data()}});
  CHECK(y == std::vector<float>{1, 1, 2.5f, 4});
}

TEST_CASE("each token meets its adapter, and one without meets none", "[adapters]") {
  for (int tokens : {1, 9, 150}) {
    check_all_adapters<layers>(tokens);
    check_all_adapters<layers>(tokens, {.threads = 2, .least_panel_rows = 1'000'000});
  }
  for (auto set : {sy::instruction_set::portable, sy::instruction_set::avx2}) {
    if (set <= sy::best_instruction_set()) check_all_adapters<layers>(70, {.threads = 1, .instructions = set});
  }
}

TEST_CASE("adapters leave experts that compute nothing alone", "[adapters]") {
  using nulls =
      sy::layer<sy::shape{40, 72, 3, 2}, sy::router::softmax_top_k, sy::capacity::dropless,
                sy::expert::adapters<
                    3, 4, sy::expert::with_null_experts<sy::expert::mlp<sy::relu>, sy::null_experts{.identity = 2}>>>;
  check_adapters<nulls>(60);
}

TEST_CASE("threads do not show in the outputs of adapters", "[adapters]") {
  adapters_problem<first> p(200);
  CHECK(same_bits(p.run({.threads = 3}), p.run({.threads = 1})));
}

TEST_CASE("an adapter that does not exist is an error, or NaN", "[adapters][errors]") {
  adapters_problem<first> p(5);
  std::vector<float> const y = p.run();
  p.adapter[2] = 3;
  CHECK_THROWS_WITH(
      p.run(),
      "switchyard: layer::forward, expert_inputs.adapter: expected ids up to 2, or negative ones for none, "
      "got 3 for token 2");
  std::vector<float> const given = p.run({.threads = 1, .unroutable = sy::unroutable_tokens::give_nan});
  int wrong = 0;
  for (int t = 0; t < 5; ++t) {
    for (int h = 0; h < 40; ++h) wrong += t == 2 ? !std::isnan(given[t * 40 + h]) : given[t * 40 + h] != y[t * 40 + h];
  }
  CHECK(wrong == 0);
  // Padding has none.
  std::vector<std::uint8_t> const active{1, 1, 0, 1, 1};
  p.args.active = active.data();
  std::vector<float> const padded = p.run();
  CHECK((padded[80] == 0.0f && padded[0] == y[0] && padded[199] == y[199]));
}

TEST_CASE("adapters say what they lack", "[adapters][errors]") {
  adapters_problem<first> p(2);
  p.run();
  auto const error_of = [&](auto const& change) -> std::string {
    first::args args = p.args;
    change(args);
    try {
      first::forward(args);
    } catch (sy::error const& e) {
      return e.what();
    }
    return "";
  };
  CHECK(error_of([](auto&) {}) == "");
  CHECK(error_of([](auto& a) { a.expert_inputs.adapter = nullptr; }) ==
        "switchyard: layer::forward, expert_inputs.adapter: expected [tokens] int32, got a null pointer");
  CHECK(
      error_of([](auto& a) { a.weights.up_proj.base.data = nullptr; }) ==
      "switchyard: layer::forward, weights.up_proj.base: expected [experts, intermediate, hidden], got a null pointer");
  CHECK(
      error_of([](auto& a) { a.weights.gate_proj.change.a = nullptr; }) ==
      "switchyard: layer::forward, weights.gate_proj.change.a: expected [adapters, experts, rank, columns], got a null "
      "pointer");
  CHECK(error_of([](auto& a) { a.weights.down_proj.change.b = nullptr; }) ==
        "switchyard: layer::forward, weights.down_proj.change.b: expected [adapters, experts, rows, rank], got a null "
        "pointer");
  CHECK(
      error_of([](auto& a) { a.weights.down_proj.change.rank = 8; }) ==
      "switchyard: layer::forward, weights.down_proj.change: expected 40 x 72, rank 4, 3 adapters (layer::in_proj and "
      "out_proj set them), got 40 x 72, rank 8, 3 adapters");
  CHECK(
      error_of([](auto& a) { a.weights.up_proj.change.a = reinterpret_cast<float const*>(a.workspace.data()); }) ==
      "switchyard: layer::forward, workspace: expected memory apart from all else that the call reads and writes, got "
      "memory that overlaps weights.up_proj");
  CHECK(error_of([](auto& a) { a.expert_inputs.scale = a.output.data; }) ==
        "switchyard: layer::forward, output: expected memory apart from all else that the call reads and writes, got "
        "memory that overlaps expert_inputs.scale");
}

TEST_CASE("names and costs of adapters", "[adapters]") {
  CHECK(sy::describe<first>() ==
        "softmax_top_k:2of4/dropless/adapters<3,4,with_bias<gated_mlp<silu>>>/40x72/cpu/float");
  constexpr std::int64_t matrices = 3 * 40 * 72, biases = 72 + 72 + 40, of_adapter = 3 * 4 * (40 + 72);
  sy::layer_costs const costs = sy::costs<first>(10, 4);
  CHECK(costs.parameters == 40 * 4 + 4 * (matrices + biases + 3 * of_adapter));
  CHECK(costs.active_parameters == 40 * 4 + 2 * (matrices + biases + of_adapter));
  CHECK(costs.flops == 2.0 * 10 * (40 * 4 + 2 * (matrices + of_adapter)));
}
