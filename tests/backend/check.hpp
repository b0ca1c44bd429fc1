#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "catch.hpp"
#include "reference.hpp"
#include "support/any_layer.hpp"
#include "support/call.hpp"
#include "support/random_problem.hpp"

/// What every backend has to give: the reference's decisions and values.
namespace support {

/// Relative Frobenius error of the output. Float: sums of up to a thousand products. bfloat16 and half round what
/// goes into the second product and the output, once each: 2^-9 and 2^-12 at most.
double output_tolerance(any_layer const& layer);

/// Logits, weights and auxiliary values are float whatever the elements are.
inline constexpr double routing_tolerance = 1e-5;

/// The same for what later passes of a stratified layer decide, which see tokens that were stored as elements.
double decision_tolerance(any_layer const& layer);

inline bool close(double got, double expected, double tolerance = routing_tolerance) {
  return std::abs(got - expected) <= tolerance * std::max(1.0, std::abs(expected));
}

template <class A, class B>
bool all_close(std::vector<A> const& got, std::vector<B> const& expected, double tolerance = routing_tolerance) {
  if (got.size() != expected.size()) return false;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (!close(double(got[i]), double(expected[i]), tolerance)) return false;
  }
  return true;
}

void check_decisions(outcome const& got, reference::result const& expected,
                     double weight_tolerance = routing_tolerance);

void check_auxiliary(sy::auxiliary_values const& got, reference::auxiliary const& expected,
                     double tolerance = routing_tolerance);

void check_against_reference(problem const& p, outcome const& got);

/// Calls `body(layer)` for every layer of layers.hpp.
template <class Body>
void for_each_layer(Body body) {
  for (any_layer const& layer : compiled_layers()) {
    INFO(layer.name);
    body(layer);
  }
}

}  // namespace support
