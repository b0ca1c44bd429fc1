#pragma once

#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "reference.hpp"

/// A layer in the words of the reference.
namespace support {

namespace sy = switchyard;

inline void describe_score(reference::config& c, sy::router::scores::softmax) { c.scores = reference::score::softmax; }
inline void describe_score(reference::config& c, sy::router::scores::sigmoid) { c.scores = reference::score::sigmoid; }
inline void describe_score(reference::config& c, sy::router::scores::sqrt_softplus) {
  c.scores = reference::score::sqrt_softplus;
}
inline void describe_score(reference::config& c, sy::router::scores::logits) { c.scores = reference::score::logits; }

inline void describe_selection(reference::config&, sy::router::selection::best) {}
inline void describe_selection(reference::config&, sy::router::selection::corrected) {}
template <int Groups, int KeptGroups, sy::router::selection::group_score Judge, class Inner>
void describe_selection(reference::config& c, sy::router::selection::grouped<Groups, KeptGroups, Judge, Inner>) {
  c.groups = Groups;
  c.kept_groups = KeptGroups;
  bool const by_best = Judge == sy::router::selection::group_score::max;
  c.group_by = by_best ? reference::group_score::max : reference::group_score::top2_sum;
}

inline void describe_weighting(reference::config&, sy::router::weighting::as_scored) {}
inline void describe_weighting(reference::config& c, sy::router::weighting::sum) { c.normalise = reference::norm::sum; }
inline void describe_weighting(reference::config& c, sy::router::weighting::l2) { c.normalise = reference::norm::l2; }
inline void describe_weighting(reference::config& c, sy::router::weighting::one) { c.unit_weights = true; }
inline void describe_weighting(reference::config& c, sy::router::weighting::softmax) { c.softmax_after_top_k = true; }
inline void describe_weighting(reference::config& c, sy::router::weighting::sigmoid) { c.sigmoid_after_top_k = true; }

// Named routers and wrappers inherit what they are made of, so an overload for a base takes all that has no own.
template <class Scores, class Selection, class Weighting>
void describe_router(reference::config& c, sy::router::top_k<Scores, Selection, Weighting> const*) {
  describe_score(c, Scores{});
  describe_selection(c, Selection{});
  describe_weighting(c, Weighting{});
}
template <class Source>
void describe_router(reference::config& c, sy::router::by_direction<Source> const*) {
  c.scores = reference::score::logits;
  c.unit_weights = true;
  bool const by_distance = std::is_same_v<Source, sy::router::from_center_distances>;
  c.select_by = by_distance ? reference::selector::center_distances : reference::selector::network;
}
template <sy::sinkhorn_traits Form>
void describe_router(reference::config& c, sy::router::s_base<Form> const*) {
  c.scores = reference::score::logits;
  c.sigmoid_after_top_k = true;
  c.balancing_iterations = Form.iterations;
  c.balancing_subtracts = Form.subtracts;
}
template <int Numerator, int Denominator>
void describe_router(reference::config& c, sy::router::sparsemixer<Numerator, Denominator> const*) {
  c.scores = reference::score::sparsemixer;
  c.jitter = double(Numerator) / Denominator;
}
inline void describe_router(reference::config& c, sy::router::precomputed const*) {
  c.scores = reference::score::precomputed;
}
inline void describe_router(reference::config& c, sy::router::hash_layer const*) {
  c.scores = reference::score::precomputed;
}
template <sy::prediction_traits Form>
void describe_router(reference::config& c, sy::router::predicted<Form> const*) {
  c.scores = reference::score::precomputed;
  c.predicted = true;
  for (int k = 0; Form.degrades && k < c.top_k; ++k) {
    c.degrading_factors.push_back(k == 0 ? 0.5 : c.top_k <= 3 ? 0.25 : 0.5 / (c.top_k - 1));
  }
  c.replaces_zeros = Form.replaces_zeros;
}
template <class Base, int Numerator, int Denominator>
void describe_router(reference::config& c, sy::router::scaled<Base, Numerator, Denominator> const*) {
  describe_router(c, static_cast<Base const*>(nullptr));
  c.scaling *= double(Numerator) / Denominator;
}

inline void describe_clustering(reference::clustering& to, sy::clustering_traits from) {
  to.scales = from.scales;
  if (from.measure == sy::dispersion::variance) to.measure = reference::spread::variance;
  to.alpha = double(from.alpha_numerator) / from.alpha_denominator;
  to.clip = double(from.clip_numerator) / from.clip_denominator;
  switch (from.scaling) {
    case sy::feature_scaling::per_feature: to.scaling = reference::feature_scaling::per_feature; break;
    case sy::feature_scaling::global: to.scaling = reference::feature_scaling::global; break;
    case sy::feature_scaling::none: to.scaling = reference::feature_scaling::none; break;
  }
  to.unit_rows = from.unit_rows;
  to.experts_see_scaled = from.experts_see_scaled;
  to.counts_empty = from.counts_empty;
}

inline void describe_capacity(reference::config&, sy::capacity::dropless const*) {}
template <std::int64_t Slots>
void describe_capacity(reference::config& c, sy::capacity::fixed<Slots> const*) {
  c.slots = Slots;
}
template <int Numerator, int Denominator>
void describe_capacity(reference::config& c, sy::capacity::share_of_tokens<Numerator, Denominator> const*) {
  c.slot_rule = [](reference::config const&, std::int64_t tokens) {
    return reference::slots_share(tokens, Numerator, Denominator);
  };
}
template <int Numerator, int Denominator, sy::capacity::rounding Rounding, int Minimum, int Alignment>
void describe_capacity(reference::config& c,
                       sy::capacity::factor<Numerator, Denominator, Rounding, Minimum, Alignment> const*) {
  c.slot_rule = [](reference::config const& of, std::int64_t tokens) {
    int const experts = reference::experts_with_rows(of), top_k = of.top_k;
    using sy::capacity::rounding;
    std::int64_t slots = 0;
    switch (Rounding) {
      case rounding::ceil: slots = reference::slots_ceil(tokens, experts, top_k, Numerator, Denominator); break;
      case rounding::mesh: slots = reference::slots_mesh(tokens, experts, Numerator, Denominator, 0); break;
      case rounding::fairseq: slots = reference::slots_fairseq(tokens, experts, Numerator, Denominator); break;
      case rounding::tutel: slots = reference::slots_tutel(tokens, experts, top_k, Numerator, Denominator); break;
    }
    return reference::ceil_div(std::max<std::int64_t>(slots, Minimum), Alignment) * Alignment;
  };
}

inline void describe_activation(reference::config& c, sy::relu) { c.act = reference::activation::relu; }
inline void describe_activation(reference::config& c, sy::relu_squared) { c.act = reference::activation::relu_squared; }
inline void describe_activation(reference::config& c, sy::gelu) { c.act = reference::activation::gelu; }
inline void describe_activation(reference::config& c, sy::gelu_tanh) { c.act = reference::activation::gelu_tanh; }
inline void describe_activation(reference::config& c, sy::silu) { c.act = reference::activation::silu; }
template <int LimitNumerator, int LimitDenominator, int AlphaNumerator, int AlphaDenominator, int Shift>
void describe_activation(
    reference::config& c,
    sy::clamped_swiglu<LimitNumerator, LimitDenominator, AlphaNumerator, AlphaDenominator, Shift>) {
  c.act = reference::activation::clamped_swiglu;
  c.clamp_shift = Shift;
  c.clamp_limit = double(LimitNumerator) / LimitDenominator;
  c.clamp_alpha = double(AlphaNumerator) / AlphaDenominator;
}

template <class Layer>
reference::config reference_config() {
  reference::config c;
  c.hidden = Layer::dims.hidden;
  c.intermediate = Layer::dims.intermediate;
  c.experts = Layer::all_experts;
  c.top_k = Layer::dims.top_k;
  describe_router(c, static_cast<typename Layer::router const*>(nullptr));
  c.weight_on_input = Layer::router_traits.weighs_input;
  c.given_ids = sy::is_given_experts<typename Layer::router>;
  if constexpr (requires { Layer::router::features::width; }) c.router_width = Layer::router::features::width;
  if constexpr (sy::router::are_scaled_by_cluster<typename Layer::router::features>) {
    describe_clustering(c.clusters, Layer::router::features::form);
  }
  using schedule = typename Layer::router::schedule;
  if constexpr (sy::router::climbs<schedule>) {
    for (int i = 0; i < schedule::strata; ++i) {
      c.strata.push_back(schedule::first_expert(i + 1) - schedule::first_expert(i));
    }
    c.stratum_norms = schedule::form.norms;
    c.normalised_residual = schedule::form.normalised_residual || !schedule::form.norms;
  }

  describe_capacity(c, static_cast<typename Layer::capacity const*>(nullptr));
  switch (Layer::capacity_traits.order) {
    case sy::queue::token_order: c.order = reference::queue::token; break;
    case sy::queue::choice_order: c.order = reference::queue::choice; break;
    case sy::queue::priority: c.order = reference::queue::priority; break;
  }
  switch (Layer::capacity_traits.on_drop) {
    case sy::dropped::zero: c.dropped = reference::dropped_output::zero; break;
    case sy::dropped::weighted_input: c.dropped = reference::dropped_output::weighted_input; break;
    case sy::dropped::input: c.dropped = reference::dropped_output::input; break;
  }
  c.counts_padding = Layer::capacity_traits.counts_padding;
  if (Layer::capacity_traits.renormalises) {
    c.normalise = reference::norm::sum;
    c.normalise_after_dropping = true;
  }

  constexpr sy::expert_traits expert = Layer::expert_traits;
  describe_activation(c, typename Layer::expert::activation{});
  c.gated = expert.gated;
  c.expert_output_scale = double(expert.scale_numerator) / expert.scale_denominator;
  c.output_bias = expert.output_bias;
  c.zero_experts = expert.nulls.zero;
  c.identity_experts = expert.nulls.identity;
  c.constant_experts = expert.nulls.constant;
  c.mixed_constant_experts = expert.nulls.mixed_constant;
  c.kept_units = expert.kept_units;
  c.norm_compensated = expert.ranking == sy::unit_ranking::norm_compensated;
  c.shared_intermediate = expert.shared_intermediate;
  if (expert.shared_intermediate > 0) {
    bool const gated = expert.gate == sy::shared_gate::sigmoid;
    c.shared = gated ? reference::shared_expert::sigmoid_gated : reference::shared_expert::plain;
  }
  return c;
}

}  // namespace support
