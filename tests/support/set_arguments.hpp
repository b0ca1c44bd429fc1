#pragma once

#include <switchyard/expert/feed_forward.hpp>
#include <switchyard/layer.hpp>
#include <switchyard/router/adaptive_clustering.hpp>
#include <switchyard/router/by_inputs.hpp>
#include <switchyard/router/expert_dropout.hpp>
#include <switchyard/router/hash_layer.hpp>
#include <switchyard/router/precomputed.hpp>
#include <switchyard/router/predicted.hpp>
#include <switchyard/router/replayed.hpp>
#include <switchyard/router/restricted.hpp>
#include <switchyard/router/selectors.hpp>
#include <switchyard/router/stratified.hpp>
#include <switchyard/router/with_router_input.hpp>

#include <cstdint>
#include <type_traits>

/// Which arguments of `forward` a layer has, written once for programs that run layers of many kinds.
namespace support {

/// Of the layers that our programs know.
inline constexpr int most_strata = 8;

/// What some routers report.
struct any_report {
  float* logits = nullptr;
  float *feature_scale = nullptr, *dispersion = nullptr;
  std::uint8_t* passes = nullptr;
};

/// What only some layers take. What a layer does not have is not read.
template <class Element>
struct optional_arguments {
  switchyard::view<Element const> residual = {};
  switchyard::router_weights router[most_strata] = {};  ///< its own or the model's; without strata the first
  switchyard::layer_norm norm[most_strata] = {};
  switchyard::weight_view<Element> gate_proj = {};
  switchyard::expert_biases<Element> bias = {};
  switchyard::shared_expert_weights<Element> shared = {};
  Element const* output_bias = nullptr;
  float const* unit_norms = nullptr;
  switchyard::constant_expert_weights<Element> constant_experts = {};
  switchyard::precomputed_routes routes = {};
  std::int32_t const* words = nullptr;  ///< [tokens]; each has a row of `routes`
  std::int32_t vocabulary = 0;          ///< those rows
  switchyard::view<Element const> router_tokens = {};
  switchyard::token_clusters clusters = {};
  switchyard::expert_dropout dropout = {};
  switchyard::allowed_experts restriction = {};
  switchyard::auxiliary_values* auxiliary = nullptr;
  any_report report = {};
};

// A router's weights; with strata one after the other. An overload for each type of a member that a layer may have.
inline void set(switchyard::router_weights& to, switchyard::router_weights const* from) { to = *from; }
inline void set(switchyard::router::plain_weights& to, switchyard::router_weights const* from) {
  to.weight = from->weight;
}
// The second matrix of a selector stands where the second stratum's would.
inline void set(switchyard::selector_weights& to, switchyard::router_weights const* from) {
  to.weight = from[0].weight;
  to.output_weight = from[1].weight;
}
// A weight that is stored as other elements stands where one of floats would.
template <class Element>
void set(switchyard::stored_router_weights<Element>& to, switchyard::router_weights const* from) {
  to = {reinterpret_cast<Element const*>(from->weight), from->bias, from->correction_bias};
}
template <class Element>
void set(switchyard::router::plain_stored_weights<Element>& to, switchyard::router_weights const* from) {
  to.weight = reinterpret_cast<Element const*>(from->weight);
}
template <int Strata, class Weights>
void set(switchyard::router::stratum_weights<Strata, Weights>& to, switchyard::router_weights const* from) {
  static_assert(Strata <= most_strata, "support::most_strata is less than a layer's strata.");
  for (int i = 0; i < Strata; ++i) set(to.stratum[i], from + i);
}
template <class Why>
void set(switchyard::router::absent_weights<Why>&, switchyard::router_weights const*) {}

template <int Strata>
void set(switchyard::stratum_norms<Strata>& to, switchyard::layer_norm const* from) {
  for (int i = 0; i < Strata; ++i) to.after[i] = from[i];
}
template <class Why>
void set(switchyard::absent<Why>&, switchyard::layer_norm const*) {}

template <class Element>
void set(switchyard::precomputed_routes& to, optional_arguments<Element> const& from) {
  to = from.routes;
}
template <class Element>
void set(switchyard::predicted_experts& to, optional_arguments<Element> const& from) {
  to = {from.routes.experts, from.routes.weights};
}
template <class Element>
void set(switchyard::replayed_experts& to, optional_arguments<Element> const& from) {
  to.experts = from.routes.experts;
}
template <class Element>
void set(switchyard::hashed_tokens& to, optional_arguments<Element> const& from) {
  to = {.token_ids = from.words, .experts = from.routes.experts, .vocabulary = from.vocabulary};
}
template <class Element>
void set(switchyard::router_inputs<Element>& to, optional_arguments<Element> const& from) {
  to.tokens = from.router_tokens;
}
template <class Element>
void set(switchyard::token_clusters& to, optional_arguments<Element> const& from) {
  to = from.clusters;
}
template <class Element>
void set(switchyard::expert_dropout& to, optional_arguments<Element> const& from) {
  to = from.dropout;
}
template <class Element>
void set(switchyard::allowed_experts& to, optional_arguments<Element> const& from) {
  to = from.restriction;
}
template <class Layer, class Element>
void set(switchyard::router::block_inputs<Layer>& to, optional_arguments<Element> const& from) {
  to.residual = from.residual;
  set(to.norm, from.norm);
}
template <class Why, class Element>
void set(switchyard::router::absent_inputs<Why>&, optional_arguments<Element> const&) {}

inline void set(switchyard::router::logits_report& to, any_report const& from) { to.logits = from.logits; }
inline void set(switchyard::router::clustering_report& to, any_report const& from) {
  to.logits = from.logits;
  to.feature_scale = from.feature_scale;
  to.dispersion = from.dispersion;
}
inline void set(switchyard::router::strata_report& to, any_report const& from) { to.passes = from.passes; }
inline void set(switchyard::router::nothing_to_report&, any_report const&) {}

inline void set(switchyard::auxiliary_values*& to, switchyard::auxiliary_values* from) { to = from; }
template <class Why>
void set(switchyard::absent<Why>&, switchyard::auxiliary_values*) {}

/// All but the experts' matrices.
template <class Layer>
void set_all_but_weights(switchyard::forward_args<Layer>& args,
                         std::type_identity_t<optional_arguments<typename Layer::element>> const& from) {
  set(args.weights.router, from.router);
  set(args.shared_router, from.router);
  set(args.inputs, from);
  set(args.report, from.report);
  set(args.auxiliary, from.auxiliary);
  constexpr bool in_cache = switchyard::expert_storage<typename Layer::backend>::in_cache;
  if constexpr (Layer::expert_traits.bias && !in_cache) args.weights.bias = from.bias;
  if constexpr (Layer::expert_traits.shared_intermediate > 0) args.weights.shared = from.shared;
  if constexpr (Layer::expert_traits.output_bias) args.weights.output_bias = from.output_bias;
  if constexpr (Layer::expert_traits.ranking == switchyard::unit_ranking::norm_compensated) {
    args.weights.unit_norms = from.unit_norms;
  }
  constexpr switchyard::null_experts nulls = Layer::expert_traits.nulls;
  if constexpr (nulls.vectors() > 0) args.weights.constant_experts.vectors = from.constant_experts.vectors;
  if constexpr (nulls.mixed_constant > 0) args.weights.constant_experts.mixing = from.constant_experts.mixing;
}
template <class Layer>
void set_arguments(switchyard::forward_args<Layer>& args,
                   std::type_identity_t<optional_arguments<typename Layer::element>> const& from) {
  set_all_but_weights(args, from);
  if constexpr (Layer::expert_traits.gated) args.weights.gate_proj = from.gate_proj;
}

}  // namespace support
