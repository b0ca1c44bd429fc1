#include <cstddef>
#include <limits>

#include "backend/check.hpp"
#include "backend/cuda/device.cuh"
#include "catch.hpp"
#include "reference.hpp"
#include "support/any_layer.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/random_numbers.hpp"
#include "support/random_problem.hpp"

/// What calls of backend::hopper share with those of backend::cuda.
using namespace support;

TEST_CASE("on Hopper many rows that cannot be moved by 16 bytes agree with the reference", "[gpu][hopper]") {
  if (!has_hopper()) return;
  for_each_layer([](any_layer const& layer) {
    if (!layer.name.starts_with("softmax_top_k:2of3/dropless")) return;
    problem const p = random_problem(layer, 210, routing::half_of_the_experts, 3);
    check_against_reference(p, run(p, {.padding = 5}));
  });
}

TEST_CASE("on Hopper padding rows take no slot, count nowhere and give zeros, whatever they hold", "[gpu][hopper]") {
  if (!has_hopper()) return;
  constexpr int tokens = 90;
  for_each_layer([](any_layer const& layer) {
    if (!layer.expert.bias && !layer.capacity.drops) return;
    if (layer.router.precomputed || !layer.reference.strata.empty()) return;
    problem p = random_problem(layer, tokens, routing::free, 7);
    random_numbers random(3);
    for (int t = 0; t < tokens; ++t) p.inputs.active.push_back(random.below(8) > 0 && (t < 30 || t > 40));
    reference::result const expected = reference::forward(p.config, p.weights, p.tokens, p.inputs);
    for (std::size_t i = 0; i < p.tokens.size(); ++i) {
      if (!p.inputs.active[i / p.config.hidden]) p.tokens[i] = std::numeric_limits<double>::quiet_NaN();
    }
    outcome const got = run(p);
    check_decisions(got, expected, decision_tolerance(layer));
    check_auxiliary(got.auxiliary, expected.aux, decision_tolerance(layer));
    CHECK(relative_error(got.output, expected.y) <= output_tolerance(layer));
    CHECK(got.guards_intact);
    for (std::size_t i = 0; i < got.output.size(); ++i) {
      if (!p.inputs.active[i / p.config.hidden] && got.output[i] != 0.0f) FAIL("row " << i / p.config.hidden);
    }
  });
}

TEST_CASE("on Hopper each group of tokens has queues of its own", "[gpu][hopper]") {
  if (!has_hopper()) return;
  for_each_layer([](any_layer const& layer) {
    if (!layer.capacity.drops || !layer.reference.strata.empty()) return;
    problem p = random_problem(layer, 90, routing::free, 7);
    p.config.tokens_per_group = 40;
    check_against_reference(p, run(p));
  });
}
