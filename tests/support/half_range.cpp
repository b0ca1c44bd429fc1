#include "support/half_range.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "backend/check.hpp"
#include "catch.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/random_problem.hpp"

namespace support {
namespace {

void multiply(reference::numbers& values, double factor) {
  for (double& v : values) v *= factor;
}

void check(problem const& p) {
  reference::result const expected = reference::forward(p.config, p.weights, p.tokens, p.inputs);
  REQUIRE(std::abs(*std::max_element(expected.y.begin(), expected.y.end())) < 60000.0);
  outcome const got = run(p);
  CHECK(relative_error(got.output, expected.y) <= output_tolerance(*p.layer));
  CHECK(got.guards_intact);
}

}  // namespace

bool check_half_range(any_layer const& layer, std::int64_t tokens) {
  bool const plain = layer.name.starts_with("softmax_top_k:2of") && !layer.capacity.drops;
  if (layer.element != "half" || !plain) return false;
  // Which units are kept hangs on rounding, unless all values of an expert are multiplied by the same power of two.
  bool const chooses = layer.expert.kept_units > 0;
  if (chooses && layer.expert.gated) return false;
  bool const clamped = layer.name.find("clamped") != std::string::npos;  // never leaves the range between the products
  problem p = random_problem(layer, tokens, routing::free, 5);
  if (!clamped) {
    problem large = p;
    // Some rows leave the range, others do not: that depends on the expert.
    std::size_t const matrix = static_cast<std::size_t>(p.config.intermediate) * p.config.hidden;
    for (std::size_t i = 0; i < large.weights.up_proj.size(); ++i) {
      double const factor = std::ldexp(1.0, i / matrix % 2 == 0 ? 13 : 4);
      large.weights.up_proj[i] *= factor;
      large.weights.down_proj[i] /= std::ldexp(1.0, 8);
    }
    multiply(large.weights.gate_proj, 16.0);
    multiply(large.weights.shared_up_proj, std::ldexp(1.0, 13));
    multiply(large.weights.shared_gate_proj, 16.0);
    multiply(large.weights.shared_down_proj, std::ldexp(1.0, -8));
    check(large);
    if (chooses) return true;
  }
  // The second choice has a weight of 1e-4, and results that are too large without it.
  std::fill(p.weights.router.begin(), p.weights.router.end(), 0.0);
  for (int e = 0; e < p.config.experts; ++e) p.weights.router[std::size_t(e) * p.config.hidden] = -9.0 * e;
  for (std::int64_t t = 0; t < tokens; ++t) p.tokens[t * p.config.hidden] = 1.0;
  std::size_t const matrix = static_cast<std::size_t>(p.config.intermediate) * p.config.hidden;
  for (std::size_t i = matrix; i < 2 * matrix; ++i) p.weights.down_proj[i] *= std::ldexp(1.0, 15);
  for (std::size_t i = 0; i < matrix; ++i) p.weights.down_proj[i] *= 2.0;
  check(p);
  return true;
}

}  // namespace support
