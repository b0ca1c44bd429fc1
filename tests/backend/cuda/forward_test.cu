#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "backend/check.hpp"
#include "catch.hpp"
#include "device.cuh"
#include "reference.hpp"
#include "support/any_layer.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/half_range.hpp"
#include "support/random_numbers.hpp"
#include "support/random_problem.hpp"
#include "support/unroutable.hpp"
#include "support/workspaces.hpp"

using namespace support;

namespace {

constexpr int tested_tokens = 70;

/// Every layer once; what differs from test to test is how it is called.
problem usual_problem(any_layer const& layer) { return random_problem(layer, tested_tokens, routing::free, 7); }

}  // namespace

TEST_CASE("every layer that runs everywhere is tested on the GPU", "[gpu]") {
  if (!has_device()) return;
  CHECK(compiled_layers().size() == std::tuple_size_v<tested_layers>);
}

TEST_CASE("on the GPU forward agrees with the reference", "[gpu][small]") {
  if (!has_device()) return;
  for_each_layer([](any_layer const& layer) {
    int turn = 0;
    for (std::int64_t tokens : {0, 1, 7, 70}) {
      routing const where = std::array{routing::free, routing::one_expert, routing::half_of_the_experts}[turn++ % 3];
      INFO(tokens << " tokens, routing: " << name_of(where));
      problem const p = random_problem(layer, tokens, where, static_cast<unsigned>(tokens));
      check_against_reference(p, run(p));
    }
  });
}

TEST_CASE("on the GPU many tokens, which take larger tiles, agree with the reference", "[gpu]") {
  if (!has_device()) return;
  for_each_layer([](any_layer const& layer) {
    if (layer.capacity.order == sy::queue::priority || layer.reference.hidden > 64) return;
    // Half of a small tile's rows per expert, and more than the tile in between has.
    for (std::int64_t rows : {20, 60}) {
      std::int64_t const tokens = rows * layer.reference.experts / layer.reference.top_k + 1;
      INFO(tokens << " tokens");
      problem const p = random_problem(layer, tokens, routing::half_of_the_experts, 3);
      check_against_reference(p, run(p));
    }
  });
}

TEST_CASE("on the GPU the blocks that route many tokens agree with the CPU's routes", "[gpu]") {
  if (!has_device()) return;
  for (char const* name : {"sigmoid_top_k:4of16/dropless/gated_mlp<silu>/20x12/cuda/float",
                           "stratified<softmax_top_k,2,1>:2of3/dropless/gated_mlp<silu>/33x12/cuda/float"}) {
    problem const p = random_problem(compiled(name), 2100, routing::free, 5);
    check_against_reference(p, run(p));
  }
}

TEST_CASE("on the GPU each group of tokens has queues of its own", "[gpu]") {
  if (!has_device()) return;
  for_each_layer([](any_layer const& layer) {
    if (!layer.capacity.drops && !layer.router.precomputed) return;
    if (layer.router.strata > 0) return;  // refused: its passes are groups
    problem p = usual_problem(layer);
    for (std::int64_t tokens_per_group : {1, 10, 69, 1000}) {
      INFO(tokens_per_group << " tokens per group");
      p.config.tokens_per_group = tokens_per_group;
      check_against_reference(p, run(p));
    }
  });
}

TEST_CASE("on the GPU the result has the same bits on every run, in place, and whatever is asked for", "[gpu][small]") {
  if (!has_device()) return;
  for_each_layer([](any_layer const& layer) {
    problem const p = usual_problem(layer);
    outcome const once = run(p);
    CHECK(same_bits(run(p, {.in_place = true}), once));
    if (!p.config.strata.empty()) CHECK(same_bits(run(p, {.onto_residual = true}), once));
    CHECK(same_bits(run(p, {.decisions = false}).output, once.output));
  });
}

TEST_CASE("on the GPU rows may stand apart, at addresses that are no multiple of 16", "[gpu]") {
  if (!has_device()) return;
  for_each_layer([](any_layer const& layer) {
    problem const p = usual_problem(layer);
    outcome const apart = run(p, {.padding = 5});
    CHECK(apart.guards_intact);
    CHECK(same_bits(apart, run(p)));
  });
}

TEST_CASE("on the GPU weights may be stored in any layout", "[gpu]") {
  if (!has_device()) return;
  for_each_layer([](any_layer const& layer) {
    problem const p = usual_problem(layer);
    outcome const separate = run(p);
    for (layout l : all_layouts) {
      if (l == layout::separate || (!layer.expert.gated && l != layout::transposed)) continue;
      INFO(name_of(l));
      CHECK(same_bits(run(p, {.stored = l}), separate));
    }
  });
}

TEST_CASE("on the GPU padding rows take no slot, count nowhere and give zeros, whatever they hold", "[gpu]") {
  if (!has_device()) return;
  for_each_layer([](any_layer const& layer) {
    problem p = usual_problem(layer);
    if (p.config.strata.empty()) p.config.tokens_per_group = 20;
    random_numbers random(3);
    for (int t = 0; t < tested_tokens; ++t) p.inputs.active.push_back(random.below(3) > 0 && (t < 30 || t > 50));
    reference::result const expected = reference::forward(p.config, p.weights, p.tokens, p.inputs);
    for (std::size_t i = 0; i < p.tokens.size(); ++i) {
      if (p.inputs.active[i / p.config.hidden]) continue;
      p.tokens[i] = std::numeric_limits<double>::quiet_NaN();
      if (!p.config.strata.empty()) p.inputs.residual[i] = p.tokens[i];
    }
    for (std::size_t pair = 0; pair < p.inputs.ids.size(); ++pair) {
      if (p.inputs.active[pair / p.config.top_k]) continue;
      p.inputs.ids[pair] = 1'000'000;
      if (!p.inputs.id_weights.empty()) p.inputs.id_weights[pair] = std::numeric_limits<double>::infinity();
    }
    for (std::size_t i = 0; i < p.inputs.router_tokens.size(); ++i) {
      if (!p.inputs.active[i / p.config.router_width])
        p.inputs.router_tokens[i] = std::numeric_limits<double>::quiet_NaN();
    }
    outcome const got = run(p);
    check_decisions(got, expected, decision_tolerance(layer));
    if (!layer.router.precomputed) check_auxiliary(got.auxiliary, expected.aux, decision_tolerance(layer));
    CHECK(relative_error(got.output, expected.y) <= output_tolerance(layer));
    CHECK(got.guards_intact);
    for (std::size_t i = 0; i < got.output.size(); ++i) {
      if (!p.inputs.active[i / p.config.hidden] && got.output[i] != 0.0f) FAIL("row " << i / p.config.hidden);
    }
  });
}

TEST_CASE("on the GPU a token that cannot be routed gives NaN, and the others what they gave", "[gpu]") {
  if (!has_device()) return;
  for_each_layer([](any_layer const& layer) { check_unroutable_token(layer); });
}

TEST_CASE("on the GPU a logit of one expert that is no number is not passed over", "[gpu]") {
  if (!has_device()) return;
  for_each_layer([](any_layer const& layer) {
    if (layer.router.precomputed || layer.reference.experts < 2) return;
    problem p = usual_problem(layer);
    p.weights.router[p.config.hidden] = std::numeric_limits<double>::quiet_NaN();  // of expert 1
    outcome const got = run(p);
    for (float y : got.output) {
      if (!std::isnan(y)) FAIL(y);
    }
    for (std::int64_t count : got.counts) CHECK(count == 0);
  });
}

TEST_CASE("on the GPU a bias of minus infinity closes its expert", "[gpu]") {
  if (!has_device()) return;
  int checked = 0;
  for_each_layer([&](any_layer const& layer) { checked += check_closed_expert(layer) ? 1 : 0; });
  CHECK(checked >= 4);
}

TEST_CASE("on the GPU a route of -1 takes no row and no slot, and adds nothing", "[gpu]") {
  if (!has_device()) return;
  int checked = 0;
  for_each_layer([&](any_layer const& layer) { checked += check_routes_elsewhere(layer) ? 1 : 0; });
  CHECK(checked >= 3);
}

TEST_CASE("on the GPU half rows may be beyond half's range where the output is not", "[gpu]") {
  if (!has_device()) return;
  int checked = 0;
  for_each_layer([&](any_layer const& layer) {
    for (std::int64_t rows : {3, 20, 60}) {  // of an expert: each of the tiles
      checked += check_half_range(layer, rows * layer.reference.experts / layer.reference.top_k) ? 1 : 0;
    }
  });
  CHECK(checked >= 3);
}

TEST_CASE("on the GPU a workspace for more tokens is never smaller", "[gpu]") { check_workspaces(); }

namespace {

/// From logits that are the same in every bit: the router weight is the identity, for routers whose logits are its products with the
/// token. What is compared is what the lanes of a warp and the one lane of the CPU make of them.
template <class Layer>
void check_routes_of_equal_logits() {
  constexpr sy::shape dims = Layer::dims;
  using source = typename Layer::router::source;
  constexpr bool of_direction = std::is_same_v<source, sy::router::from_center_distances> ||
                                std::is_same_v<source, sy::router::from_selector_network>;
  if constexpr (dims.hidden >= dims.experts && sy::makes_logits<typename Layer::router> && !of_direction &&
                !Layer::router_traits.takes_inputs) {
    constexpr int tokens = 40;
    any_layer const& layer = compiled(sy::describe<on_cuda<Layer>>());
    INFO(layer.name);
    problem p = random_problem(layer, tokens, routing::free, 11);
    random_numbers random(11);
    std::fill(p.weights.router.begin(), p.weights.router.end(), 0.0);
    std::fill(p.weights.router_bias.begin(), p.weights.router_bias.end(), 0.0);
    std::fill(p.weights.correction_bias.begin(), p.weights.correction_bias.end(), 0.0);
    std::fill(p.tokens.begin(), p.tokens.end(), 0.0);
    for (int e = 0; e < dims.experts; ++e) p.weights.router[e * dims.hidden + e] = 1.0;
    // Ties everywhere: a tie goes to the lower id on both.
    for (int t = 0; t < tokens; ++t) {
      for (int e = 0; e < dims.experts; ++e) p.tokens[t * dims.hidden + e] = random.below(6) / 4.0;
    }
    outcome const got = run(p);
    std::vector<float> bias(dims.experts);
    if (layer.reference.balancing_iterations > 0) {
      reference::numbers logits;
      for (int t = 0; t < tokens; ++t) {
        auto const row = p.tokens.begin() + t * dims.hidden;
        logits.insert(logits.end(), row, row + dims.experts);
      }
      reference::numbers const balancing = reference::balancing_bias(layer.reference, logits);
      for (int e = 0; e < dims.experts; ++e) bias[e] = static_cast<float>(balancing[e]);
    }
    for (int t = 0; t < tokens; ++t) {
      sy::per_expert<dims.experts, sy::serial_lanes> logits;
      for (int e = 0; e < dims.experts; ++e) logits.value[e] = static_cast<float>(p.tokens[t * dims.hidden + e]);
      auto const expected = Layer::router::template select<dims.top_k, dims.experts>(sy::serial_lanes{}, logits,
                                                                                     {.correction_bias = bias.data()});
      for (int k = 0; k < dims.top_k; ++k) {
        std::size_t const pair = t * dims.top_k + k;
        float const weight = expected.weight[k];
        if (got.experts[pair] != expected.expert[k]) FAIL("token " << t << ", choice " << k);
        if (std::abs(got.weights[pair] - weight) > 1e-6f * std::abs(weight)) FAIL(got.weights[pair] << ", " << weight);
      }
    }
  }
}

template <class... Layers>
void check_routes_of_equal_logits(std::tuple<Layers...> const*) {
  (check_routes_of_equal_logits<Layers>(), ...);
}

}  // namespace

TEST_CASE("from the same logits CPU and GPU choose the same experts, with weights within 1e-6", "[gpu]") {
  if (!has_device()) return;
  check_routes_of_equal_logits(static_cast<tested::routers*>(nullptr));
  check_routes_of_equal_logits(static_cast<tested::composed_routers*>(nullptr));
}
