#pragma once

#include <switchyard/expert/feed_forward.hpp>
#include <switchyard/layer.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

#include "support/set_arguments.hpp"

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
  support::any_report report = {};
};

template <class Layer>
typename Layer::args args_of(call_memory<typename Layer::element> const& from) {
  typename Layer::args to{};
  to.tokens = Layer::rows(from.input, from.tokens);
  to.output = Layer::rows(from.output, from.tokens);
  to.workspace = from.workspace;
  to.weights.up_proj = from.up_proj;
  to.weights.down_proj = from.down_proj;
  support::optional_arguments<typename Layer::element> optional{.residual = to.tokens,
                                                                .router = {from.router},
                                                                .gate_proj = from.gate_proj,
                                                                .bias = from.bias,
                                                                .shared = from.shared,
                                                                .routes = from.routes,
                                                                .clusters = from.clusters,
                                                                .report = from.report};
  if constexpr (router::climbs<typename Layer::router::schedule>) {
    for (int i = 0; i < Layer::router::schedule::passes; ++i) {
      optional.router[i].weight =
          from.router.weight + std::int64_t{Layer::router::schedule::first_expert(i)} * Layer::dims.hidden;
      optional.norm[i] = {from.ones, from.ones};
    }
  }
  support::set_arguments(to, optional);
  to.decisions = from.decisions;
  return to;
}

}  // namespace switchyard::bench
