#pragma once

#include <switchyard/core/text.hpp>
#include <switchyard/core/with.hpp>
#include <switchyard/router/by_logits.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

namespace switchyard {

/// How the spread of a cluster along a feature is measured.
enum class dispersion {
  mean_absolute,  ///< mean absolute deviation from the cluster's mean
  variance        ///< mean squared deviation
};

/// What the weights of the features are divided by in the end.
enum class feature_scaling {
  per_feature,  ///< each feature by its mean over the clusters
  global,       ///< all by the one mean that they had before they were clipped
  none
};

/// How a router scales the features of a token, before the router product: by how tight the token's cluster is along each
/// of them. Off unless a form says otherwise.
struct clustering_traits {
  bool scales = false;
  dispersion measure = dispersion::mean_absolute;
  int alpha_numerator = 1, alpha_denominator = 10000;  ///< added to a dispersion before it is inverted
  int clip_numerator = 10, clip_denominator = 1;       ///< most that a weight is, in means of all weights; 0: no limit
  feature_scaling scaling = feature_scaling::per_feature;
  bool unit_rows = true;            ///< rows of the router weight are divided by their length
  bool experts_see_scaled = false;  ///< the experts get the scaled tokens, too
  bool counts_empty = false;        ///< clusters without a token count in every mean, as in the published code
};

/// The clusters of the tokens, for `router::adaptive_clustering`: experts of this layer's number, of the layer before.
struct token_clusters {
  /// [tokens, choices]: `decisions.experts` of the previous MoE layer. This call may write its own to the same memory. A token
  /// without a cluster, whose label is no expert, cannot be routed.
  std::int32_t const* labels = nullptr;
  int choices = 1;  ///< that layer's top_k; the first choice of a token is its cluster
  /// [experts, hidden] weights of the features, collected before; null: they are computed from these tokens.
  float const* feature_scale = nullptr;
};

}  // namespace switchyard

namespace switchyard::router {

/// The features of each token are multiplied by the weights of its cluster.
template <clustering_traits Form>
struct features_scaled_by_cluster {
  static constexpr clustering_traits form = Form;
};

template <class Features>
inline constexpr bool are_scaled_by_cluster = false;
template <clustering_traits Form>
inline constexpr bool are_scaled_by_cluster<features_scaled_by_cluster<Form>> = true;

/// `report` of `adaptive_clustering`.
struct clustering_report {
  float* logits = nullptr;         ///< [tokens, experts] router output, bias included
  float* feature_scale = nullptr;  ///< [experts, hidden] weights by cluster
  float* dispersion = nullptr;     ///< [experts, hidden] deviations by cluster; with computed weights alone
  [[no_unique_address]] absent<the_router_has_no_strata> passes = {};
};

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
      makes_logits<Base>,
      "switchyard: a router without logits, such as router::precomputed, leaves router::adaptive_clustering nothing "
      "to scale. Wrap a router that makes logits.");
  static_assert(
      !Base::traits.takes_inputs,
      "switchyard: router::adaptive_clustering takes .inputs, and the router that it wraps "
      "(router::replayed, router::restricted, router::with_router_input or router::with_expert_dropout) takes "
      "them, too. Take one of the two.");
  static_assert(std::is_same_v<typename Base::weight_element, float>,
                "switchyard: router::adaptive_clustering reads its router weight as floats, for it also takes the "
                "lengths of its rows. Take router::with_weight_element away.");
  static_assert(std::is_same_v<typename Base::features, features_as_they_are>,
                "switchyard: router::adaptive_clustering inside another one. Wrap the base router once.");
  static_assert(std::is_same_v<typename Base::schedule, one_pass>,
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
  using features = features_scaled_by_cluster<Form>;
  template <class Layer>
  using inputs = token_clusters;
  template <class Layer>
  using report = clustering_report;

  template <class Self, shape Dims, class Capacity, class Expert>
  static constexpr bool fits() {
    static_assert(
        Expert::traits.nulls.count() == 0,
        "switchyard: router::adaptive_clustering puts a token into the cluster of its first choice, and no publication "
        "says whether an expert that computes nothing has one. Take expert::with_null_experts away.");
    return Base::template fits<Self, Dims, Capacity, Expert>();
  }

  template <class Layer>
  static void check(forward_args<Layer> const& args) {
    Base::template check<Layer>(args);
    if (args.tokens.rows > 0) {
      checks::check_pointer(
          args.inputs.labels, "inputs.labels",
          "[tokens, choices] int32, the previous MoE layer's decisions.experts (a first layer takes the base router)");
    }
    if (args.inputs.choices < 1) {
      fail("layer::forward, inputs.choices", "at least 1", std::to_string(args.inputs.choices));
    }
    checks::check_absent(args.inputs.feature_scale != nullptr && args.report.dispersion != nullptr, "report.dispersion",
                         "a null pointer, for inputs.feature_scale is given");
  }
  template <class Layer>
  static void list_written(forward_args<Layer> const& args, checks::written_memory& memory) {
    constexpr std::int64_t table = std::int64_t{Layer::dims.experts} * Layer::dims.hidden;
    Base::template list_written<Layer>(args, memory);
    memory.write("report.feature_scale", args.report.feature_scale, table);
    memory.write("report.dispersion", args.report.dispersion, table);
  }
  template <class Layer>
  static void list_read(forward_args<Layer> const& args, checks::written_memory const& memory) {
    Base::template list_read<Layer>(args, memory);
    // The first layer's choices may make room for this one's.
    memory.read("inputs.labels", args.inputs.labels, args.tokens.rows * args.inputs.choices, "decisions.experts");
    memory.read("inputs.feature_scale", args.inputs.feature_scale,
                std::int64_t{Layer::dims.experts} * Layer::dims.hidden);
  }
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
