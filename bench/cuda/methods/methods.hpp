#pragma once

#include <switchyard/switchyard.hpp>

namespace switchyard::bench {

/// The layers of a comparison of router methods, on one backend.
template <shape Dims, class Backend>
struct methods {
  template <class Router>
  using with = layer<Dims, Router, capacity::dropless, expert::gated_mlp<silu>, Backend, bfloat16>;
  using base = with<router::top_k_softmax>;
  using shared = with<router::shared<router::top_k_softmax>>;
  using clustered = with<router::adaptive_clustering<router::top_k_softmax>>;
  using stratified = with<router::stratified<router::top_k_softmax, Dims.experts / 2, Dims.experts - Dims.experts / 2>>;
};

/// OLMoE's shape, and a small one for smoke runs.
inline constexpr shape olmoe_shape{.hidden = 2048, .intermediate = 1024, .experts = 64, .top_k = 8};
inline constexpr shape small_shape{.hidden = 64, .intermediate = 128, .experts = 8, .top_k = 2};

}  // namespace switchyard::bench
