#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "catch.hpp"
#include "support.hpp"

/// What every backend has to give: the reference's decisions and values.
namespace support {

/// Relative Frobenius error of the output. Float: sums of up to a thousand products. bfloat16 and half round what
/// goes into the second product and the output, once each: 2^-9 and 2^-12 at most.
inline double output_tolerance(any_layer const& layer) {
  return layer.element == "float" ? 1e-5 : layer.element == "half" ? 2e-3 : 1e-2;
}

/// Logits, weights and auxiliary values are float whatever the elements are.
inline constexpr double routing_tolerance = 1e-5;

/// The same for what later passes of a stratified layer decide, which see tokens that were stored as elements.
inline double decision_tolerance(any_layer const& layer) {
  bool const later = layer.router.stratification.strata > 0 && layer.element != "float";
  return later ? output_tolerance(layer) : routing_tolerance;
}

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

inline void check_decisions(outcome const& got, reference::result const& expected,
                            double weight_tolerance = routing_tolerance) {
  CHECK(got.experts == std::vector<std::int32_t>(expected.ids.begin(), expected.ids.end()));
  CHECK(got.dropped == expected.dropped);
  CHECK(got.counts == expected.counts);
  CHECK(got.load == expected.load);
  CHECK(got.passes == expected.passes);
  CHECK(all_close(got.weights, expected.weights, weight_tolerance));
}

inline void check_auxiliary(sy::auxiliary_values const& got, reference::auxiliary const& expected,
                            double tolerance = routing_tolerance) {
  CHECK(close(got.balance_first_choice, expected.balance_first_choice, tolerance));
  CHECK(close(got.balance_all_choices, expected.balance_all_choices, tolerance));
  CHECK(close(got.balance_kept_choice, expected.balance_kept_choice, tolerance));
  CHECK(close(got.balance_combine_weight, expected.balance_combine_weight, tolerance));
  CHECK(close(got.z_loss, expected.z_loss, tolerance));
  CHECK(close(got.load_variation, expected.load_variation, tolerance));
}

inline void check_against_reference(problem const& p, outcome const& got) {
  reference::result const expected = reference::forward(p.config, p.weights, p.tokens, p.inputs);
  double const tolerance = decision_tolerance(*p.layer);
  check_decisions(got, expected, tolerance);
  if (!p.layer->router.precomputed) {
    CHECK(all_close(got.logits, expected.logits));
    check_auxiliary(got.auxiliary, expected.aux, tolerance);
  }
  CHECK(relative_error(got.output, expected.y) <= output_tolerance(*p.layer));
  if (p.config.clusters.scales) {
    CHECK(relative_error(got.feature_scale, expected.feature_scale) <= routing_tolerance);
    CHECK(relative_error(got.dispersion, expected.dispersion) <= routing_tolerance);
  }
  CHECK(got.guards_intact);
}

/// Calls `body(layer)` for every layer of layers.hpp.
template <class Body>
void for_each_layer(Body body) {
  for (any_layer const& layer : compiled_layers()) {
    INFO(layer.name);
    body(layer);
  }
}

}  // namespace support
