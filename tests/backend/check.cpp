#include "backend/check.hpp"

#include <cstdint>

#include "support/compare.hpp"

namespace support {

double output_tolerance(any_layer const& layer) {
  return layer.element == "float" ? 1e-5 : layer.element == "half" ? 2e-3 : 1e-2;
}

double decision_tolerance(any_layer const& layer) {
  bool const later = layer.router.strata > 0 && layer.element != "float";
  return later ? output_tolerance(layer) : routing_tolerance;
}

void check_decisions(outcome const& got, reference::result const& expected, double weight_tolerance) {
  CHECK(got.experts == std::vector<std::int32_t>(expected.ids.begin(), expected.ids.end()));
  CHECK(got.dropped == expected.dropped);
  CHECK(got.counts == expected.counts);
  CHECK(got.load == expected.load);
  CHECK(got.passes == expected.passes);
  CHECK(all_close(got.weights, expected.weights, weight_tolerance));
}

void check_auxiliary(sy::auxiliary_values const& got, reference::auxiliary const& expected, double tolerance) {
  CHECK(close(got.balance_first_choice, expected.balance_first_choice, tolerance));
  CHECK(close(got.balance_all_choices, expected.balance_all_choices, tolerance));
  CHECK(close(got.balance_kept_choice, expected.balance_kept_choice, tolerance));
  CHECK(close(got.balance_combine_weight, expected.balance_combine_weight, tolerance));
  CHECK(close(got.z_loss, expected.z_loss, tolerance));
  CHECK(close(got.load_variation, expected.load_variation, tolerance));
  CHECK(close(got.negative_entropy, expected.negative_entropy, tolerance));
}

void check_against_reference(problem const& p, outcome const& got) {
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

}  // namespace support
