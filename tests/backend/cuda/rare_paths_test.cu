#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "backend/check.hpp"
#include "catch.hpp"
#include "device.cuh"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/compile.hpp"
#include "support/margins.hpp"
#include "support/random_problem.hpp"

/// What the small layers of layers.hpp do not reach: loops that go round once with them, and kernels for large numbers.
using namespace support;

namespace {

using namespace tested;

template <int Hidden, int Experts, int TopK, class Router, class Capacity = dropless, class Element = float>
using on_gpu = layer<shape{Hidden, 8, Experts, TopK}, Router, Capacity, mlp<relu>, switchyard::backend::cuda, Element>;

/// Runs a layer on so many tokens and compares all that it gives with the reference.
template <class Layer>
void check(std::int64_t tokens, routing where = routing::free) {
  any_layer const layer = erase<Layer>();
  INFO(layer.name << ", " << tokens << " tokens, routing: " << name_of(where));
  problem const p = random_problem(layer, tokens, where, 5);
  check_against_reference(p, run(p));
}

using deepseek_router =
    router::scaled<top_k<scores::sigmoid, grouped_corrected<8, 4, group_score::top2_sum>, weighting::sum>, 5, 2>;

}  // namespace

TEST_CASE("on the GPU a router chooses among hundreds of experts as the reference does", "[gpu]") {
  if (!has_device()) return;
  check<on_gpu<8, 256, 8, deepseek_router>>(20);  // four warps beside each other
  check<on_gpu<8, 300, 2, softmax_top_k>>(20);    // eight
  check<on_gpu<8, 600, 2, softmax_top_k>>(20);    // in three sweeps
  check<on_gpu<8, 600, 2, softmax_top_k>>(20, routing::one_expert);
}

TEST_CASE("on the GPU many tokens and experts are balanced as the reference balances them", "[gpu]") {
  if (!has_device()) return;
  check<on_gpu<8, 300, 2, s_base<>>>(100);   // more experts than a block has threads
  check<on_gpu<20, 16, 4, s_base<>>>(2100);  // more tiles of tokens than a warp has lanes
}

TEST_CASE("on the GPU logits may be large where experts are balanced", "[gpu]") {
  if (!has_device()) return;
  any_layer const layer = erase<on_gpu<20, 16, 4, s_base<>>>();
  problem p = random_problem(layer, 100, routing::free, 5);
  for (double& w : p.weights.router) w *= 4096.0;
  reference::numbers const logits = reference::router_logits(p.config, p.weights, p.tokens),
                           bias = reference::balancing_bias(p.config, logits);
  outcome const got = run(p);
  int compared = 0;
  for (std::size_t t = 0; t < 100; ++t) {
    reference::numbers const mine(logits.begin() + t * 16, logits.begin() + (t + 1) * 16);
    if (!choice_is_clear(p.config, mine, bias)) continue;
    std::vector<int> const chosen = reference::route(p.config, mine, bias).ids;
    CHECK(std::vector<int>(got.experts.begin() + t * 4, got.experts.begin() + (t + 1) * 4) == chosen);
    ++compared;
  }
  CHECK(compared > 50);
}

TEST_CASE("on the GPU products find their tiles among more experts than a block has threads", "[gpu]") {
  if (!has_device()) return;
  using layer = on_gpu<8, 300, 2, softmax_top_k>;
  // Blocks of 128 threads; then more than eight rows per expert, whose blocks have 256.
  std::int64_t const few = 150, more = 1360;
  REQUIRE(sy::cuda::rows_per_expert<layer>(few) <= sy::cuda::portable_products::few);
  REQUIRE(sy::cuda::rows_per_expert<layer>(more) > sy::cuda::portable_products::few);
  for (std::int64_t tokens : {few, more}) check<layer>(tokens);
}

TEST_CASE("on the GPU a token may choose more experts than a warp has lanes", "[gpu]") {
  if (!has_device()) return;
  check<on_gpu<8, 40, 33, softmax_top_k>>(40);
  check<on_gpu<8, 40, 33, softmax_top_k, on_drop<fixed<30>, dropped::weighted_input>>>(40);
  check<on_gpu<8, 40, 33, precomputed>>(40);
}

TEST_CASE("on the GPU rows that take a block several rounds between the passes of strata are the reference's",
          "[gpu]") {
  if (!has_device()) return;
  using strata = stratified<softmax_top_k, 2, 2>;
  check<on_gpu<2056, 4, 2, strata, dropless, sy::bfloat16>>(20);
  check<on_gpu<1030, 4, 2, with_separate_residual<strata>>>(20);
}

TEST_CASE("a graph of forward with given weights of features has as many kernels as the layer says", "[gpu]") {
  if (!has_device()) return;
  for_each_layer([](any_layer const& layer) {
    if (!layer.router.scales_features) return;
    problem p = random_problem(layer, 30, routing::free, 7);
    outcome const computed = run(p);
    p.inputs.feature_scale.assign(computed.feature_scale.begin(), computed.feature_scale.end());
    current_call_mode() = call_mode::captured;
    outcome given;
    // Without decisions: the weights asked for would be a copy more.
    REQUIRE_NOTHROW(given = run(p, {.decisions = false}));
    current_call_mode() = call_mode::whole;
    CHECK(same_bits(given.output, computed.output));
  });
}
