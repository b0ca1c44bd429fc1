#pragma once

#include <switchyard/core/text.hpp>
#include <switchyard/core/with.hpp>
#include <switchyard/router/router_policy.hpp>

#include <cstdint>
#include <string_view>

namespace switchyard::router {

/// The form of the published language models: weights of at most 10 means, each feature scaled to a mean of 1, router
/// rows of unit length, experts see the tokens as they are.
inline constexpr clustering_traits language_model{.scales = true};

/// The form of the published vision models: weights of at most 1.5 means, all scaled by one number, router rows as they
/// are, experts see the scaled tokens.
inline constexpr clustering_traits vision{.scales = true,
                                          .clip_numerator = 3,
                                          .clip_denominator = 2,
                                          .scaling = feature_scaling::global,
                                          .unit_rows = false,
                                          .experts_see_scaled = true};

/// A form with the exact numbers of the published code, which counts empty clusters in all means: weights shrink by orders
/// of magnitude as soon as one expert gets no token.
constexpr clustering_traits counting_empty(clustering_traits form) {
  return with(form, &clustering_traits::counts_empty, true);
}

namespace detail {

constexpr bool same(clustering_traits a, clustering_traits b) {
  return a.measure == b.measure && a.alpha_numerator == b.alpha_numerator &&
         a.alpha_denominator == b.alpha_denominator && a.clip_numerator == b.clip_numerator &&
         a.clip_denominator == b.clip_denominator && a.scaling == b.scaling && a.unit_rows == b.unit_rows &&
         a.experts_see_scaled == b.experts_see_scaled;
}

template <clustering_traits Form>
constexpr auto form_label() {
  if constexpr (same(Form, language_model)) {
    return text<0>{};
  } else if constexpr (same(Form, vision)) {
    return text(",vision");
  } else {
    constexpr auto measure = [] {
      if constexpr (Form.measure == dispersion::variance) {
        return text(",variance");
      } else {
        return text<0>{};
      }
    }();
    constexpr auto scaling = [] {
      if constexpr (Form.scaling == feature_scaling::none) {
        return text(",unscaled");
      } else if constexpr (Form.scaling == feature_scaling::global) {
        return text(",global");
      } else {
        return text<0>{};
      }
    }();
    constexpr auto rows = [] {
      if constexpr (Form.unit_rows) {
        return text<0>{};
      } else {
        return text(",plain_rows");
      }
    }();
    constexpr auto experts = [] {
      if constexpr (Form.experts_see_scaled) {
        return text(",scaled_experts");
      } else {
        return text<0>{};
      }
    }();
    return measure + ",alpha:" + ratio_text<Form.alpha_numerator, Form.alpha_denominator>() +
           ",clip:" + ratio_text<Form.clip_numerator, Form.clip_denominator>() + scaling + rows + experts;
  }
}

template <clustering_traits Form>
constexpr auto empty_label() {
  if constexpr (Form.counts_empty) {
    return text(",counting_empty");
  } else {
    return text<0>{};
  }
}

}  // namespace detail

/// The base router sees tokens whose features are scaled: logits[e] = sum_q x[q] m[c, q] w[e, q], where the cluster c of a
/// token is its first choice in the previous MoE layer and m[c, q] is large where the cluster is tight. The clusters'
/// means and deviations are those of the tokens at hand, or a caller gives a table of weights that was collected before
/// (our extension): statistics of a batch switch the method off for a batch of one token.
///
/// For a cluster c and a feature q: s = mean of |x - mean of x| over the cluster's tokens; m = 1 / (s + alpha), at most
/// clip means of all m; then divided by the mean over the clusters. `Form` has the constants; clusters without a token
/// count nowhere unless it says so. A first layer has no previous one: use `Base` there.
/// Source: Nielsen et al. 2025, Tight Clusters Make Specialized Experts, section 4, with the constants of its code. There,
/// logits that are not finite are replaced; here they are an error, as in any layer.
template <class Base, clustering_traits Form = language_model>
struct adaptive_clustering : Base {
  static_assert(
      !Base::traits.precomputed,
      "switchyard: router::precomputed makes no logits from tokens, so router::adaptive_clustering has nothing to "
      "scale. Wrap a router that makes logits.");
  static_assert(!Base::traits.clustering.scales,
                "switchyard: router::adaptive_clustering inside another one. Wrap the base router once.");
  static_assert(Base::traits.stratification.strata == 0,
                "switchyard: router::adaptive_clustering around router::stratified: the clusters of a token are those "
                "of one router, and a stratified layer has several. Take one of the two.");
  static_assert(Form.scales,
                "switchyard: this form of router::adaptive_clustering scales nothing. Set .scales, or begin "
                "with router::language_model or router::vision.");
  static_assert(
      Form.alpha_numerator > 0 && Form.alpha_denominator > 0,
      "switchyard: router::adaptive_clustering divides by a deviation plus alpha, and a deviation may be zero. Set "
      ".alpha_numerator and .alpha_denominator to at least 1.");
  static_assert(Form.clip_numerator >= 0 && Form.clip_denominator > 0,
                "switchyard: router::adaptive_clustering clips at a fraction of the mean. Set .clip_numerator to 0 (no "
                "limit) or more and .clip_denominator to at least 1.");
  static constexpr auto label =
      "adaptive_clustering<" + name_of<Base>() + detail::form_label<Form>() + detail::empty_label<Form>() + ">";
  static constexpr std::string_view name = label;
  static constexpr router_traits traits = with(Base::traits, &router_traits::clustering, Form);
};

}  // namespace switchyard::router

namespace switchyard::clustering {

// The mathematics of one cluster and one feature, for every backend.

/// What a token at `distance` from its cluster's mean adds to the sum of the deviations.
template <clustering_traits Form>
SWITCHYARD_HD constexpr float deviation(float distance) {
  if constexpr (Form.measure == dispersion::variance) return distance * distance;
  return distance < 0.0f ? -distance : distance;
}

/// The weight of a feature before clipping, from the mean deviation.
template <clustering_traits Form>
SWITCHYARD_HD constexpr float raw_weight(float mean_deviation) {
  constexpr float alpha = static_cast<float>(1.0 * Form.alpha_numerator / Form.alpha_denominator);
  return 1.0f / (mean_deviation + alpha);
}

/// A weight clipped by the mean of all weights.
template <clustering_traits Form>
SWITCHYARD_HD constexpr float clipped(float weight, float mean_weight) {
  if constexpr (Form.clip_numerator == 0) return weight;
  constexpr float clip = static_cast<float>(1.0 * Form.clip_numerator / Form.clip_denominator);
  return weight > clip * mean_weight ? clip * mean_weight : weight;
}

/// From deviations to weights, in place: `table` is [experts, hidden]. `counts(c)` says whether a cluster counts in the
/// means; the weights of one that does not are 1.
template <clustering_traits Form, class Counts>
void make_weights(float* table, int experts, int hidden, Counts const& counts) {
  int live = 0;
  double total = 0.0;
  for (int c = 0; c < experts; ++c) {
    float* const row = table + std::int64_t{c} * hidden;
    for (int q = 0; q < hidden; ++q) row[q] = raw_weight<Form>(row[q]);
    if (!counts(c)) continue;
    ++live;
    for (int q = 0; q < hidden; ++q) total += row[q];
  }
  float const mean = live == 0 ? 1.0f : static_cast<float>(total / (1.0 * live * hidden));
  for (int q = 0; q < hidden; ++q) {
    double column = 0.0;
    for (int c = 0; c < experts; ++c) {
      float& weight = table[std::int64_t{c} * hidden + q];
      weight = clipped<Form>(weight, mean);
      if (counts(c)) column += weight;
    }
    float divisor = 1.0f;
    if constexpr (Form.scaling == feature_scaling::per_feature) divisor = static_cast<float>(column / live);
    if constexpr (Form.scaling == feature_scaling::global) divisor = mean;
    for (int c = 0; c < experts; ++c) {
      float& weight = table[std::int64_t{c} * hidden + q];
      weight = counts(c) ? weight / divisor : 1.0f;
    }
  }
}

/// The least length that a row of the router weight is divided by.
inline constexpr float least_row_length = 1e-4f;

}  // namespace switchyard::clustering
