#pragma once

#include <switchyard/layer.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

/// The one place where the benches fill the arguments of a call, for every layer and every backend.
namespace switchyard::bench {

/// What a call reads and writes, wherever that is. What a layer does not have is not read.
template <class Element>
struct call_memory {
  std::int64_t tokens = 0;
  Element const* input = nullptr;  ///< [tokens, hidden]; the residual of stratified layers, too
  Element* output = nullptr;       ///< [tokens, hidden]
  std::span<std::byte> workspace = {};
  router_weights router = {};  ///< whoever owns it; the gate of a stratum has the rows of its experts
  weight_view<Element> gate_proj = {}, up_proj = {}, down_proj = {};
  expert_biases<Element> bias = {};
  shared_expert_weights<Element> shared = {};
  float const* ones = nullptr;  ///< [hidden], for weights and biases of norms
  precomputed_routes routes = {};
  token_clusters clusters = {};
  switchyard::decisions decisions = {};
};

template <class Layer>
typename Layer::args args_of(call_memory<typename Layer::element> const& from) {
  constexpr router_traits router = Layer::router_traits;
  typename Layer::args to{};
  to.tokens = Layer::rows(from.input, from.tokens);
  to.output = Layer::rows(from.output, from.tokens);
  to.workspace = from.workspace;
  if constexpr (Layer::expert_traits.gated) to.weights.gate_proj = from.gate_proj;
  to.weights.up_proj = from.up_proj;
  to.weights.down_proj = from.down_proj;
  if constexpr (Layer::expert_traits.bias) to.weights.bias = from.bias;
  if constexpr (Layer::expert_traits.shared_intermediate > 0) to.weights.shared = from.shared;
  if constexpr (router.precomputed) {
    to.routes = from.routes;
  } else if constexpr (router.stratification.strata > 0) {
    to.residual = to.tokens;
    for (int i = 0; i < Layer::strata_or_one; ++i) {
      to.weights.router.gate[i].weight =
          from.router.weight + std::int64_t{Layer::router::first_expert(i)} * Layer::dims.hidden;
      if constexpr (router.stratification.norms) to.weights.norm.after[i] = {from.ones, from.ones};
    }
  } else if constexpr (router.gate == gate_owner::model) {
    to.shared_router = from.router;
  } else {
    to.weights.router = from.router;
  }
  if constexpr (router.clustering.scales) to.clusters = from.clusters;
  to.decisions = from.decisions;
  return to;
}

}  // namespace switchyard::bench
