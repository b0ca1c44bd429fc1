#pragma once

#include <switchyard/layer.hpp>

#include <type_traits>

/// Which arguments of `forward` a layer has, written once for programs that run layers of many kinds.
namespace support {

/// Of the layers that our programs know.
inline constexpr int most_strata = 8;

/// What only some layers take. What a layer does not have is not read.
template <class Element>
struct optional_arguments {
  switchyard::view<Element const> residual = {};
  switchyard::router_weights router[most_strata] = {};  ///< its own or the model's; without strata the first
  switchyard::layer_norm norm[most_strata] = {};
  switchyard::weight_view<Element> gate_proj = {};
  switchyard::expert_biases<Element> bias = {};
  switchyard::shared_expert_weights<Element> shared = {};
  switchyard::precomputed_routes routes = {};
  switchyard::token_clusters clusters = {};
  switchyard::auxiliary_values* auxiliary = nullptr;
};

/// A router's weights; with strata one gate after the other.
inline void set_router(switchyard::router_weights& to, switchyard::router_weights const* from) { to = *from; }
inline void set_router(switchyard::plain_router_weights& to, switchyard::router_weights const* from) {
  to.weight = from->weight;
}
template <int Strata, class Weights>
void set_router(switchyard::stratum_gates<Strata, Weights>& to, switchyard::router_weights const* from) {
  static_assert(Strata <= most_strata, "support::most_strata is less than a layer's strata.");
  for (int i = 0; i < Strata; ++i) set_router(to.gate[i], from + i);
}

template <class Layer>
void set_arguments(switchyard::forward_args<Layer>& args,
                   std::type_identity_t<optional_arguments<typename Layer::element>> const& from) {
  if constexpr (Layer::router_traits.precomputed) {
    args.routes = from.routes;
  } else {
    args.auxiliary = from.auxiliary;
    if constexpr (Layer::router_traits.gate == switchyard::gate_owner::model) {
      set_router(args.shared_router, from.router);
    } else {
      set_router(args.weights.router, from.router);
    }
  }
  if constexpr (Layer::router_traits.clustering.scales) args.clusters = from.clusters;
  if constexpr (Layer::router_traits.stratification.strata > 0) {
    args.residual = from.residual;
    if constexpr (Layer::router_traits.stratification.norms) {
      for (int i = 0; i < Layer::strata_or_one; ++i) args.weights.norm.after[i] = from.norm[i];
    }
  }
  if constexpr (Layer::expert_traits.gated) args.weights.gate_proj = from.gate_proj;
  if constexpr (Layer::expert_traits.bias) args.weights.bias = from.bias;
  if constexpr (Layer::expert_traits.shared_intermediate > 0) args.weights.shared = from.shared;
}

}  // namespace support
