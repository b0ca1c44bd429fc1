#pragma once

#include <switchyard/layer.hpp>

#include <cmath>
#include <cstdint>
#include <string>

namespace switchyard {

/// A stable name: router with its choice, capacity, expert, shape, backend and element type.
/// `softmax_top_k:2of8/dropless/gated_mlp<silu>/4096x14336/cpu/float`
template <class Layer>
std::string describe() {
  auto const part = [](std::string_view text) { return std::string(text); };
  constexpr shape dims = Layer::dims;
  return part(Layer::router::name) + ":" + std::to_string(dims.top_k) + "of" + std::to_string(dims.experts) + "/" +
         part(Layer::capacity::name) + "/" + part(Layer::expert::name) + "/" + std::to_string(dims.hidden) + "x" +
         std::to_string(dims.intermediate) + "/" + part(Layer::backend::template name_for<Layer>()) + "/" +
         part(element_name<typename Layer::element>);
}

/// What one `forward` has to do at least. With `router::stratified`: one pass, all experts open; flops and the experts' part
/// of the bytes grow with the passes.
struct layer_costs {
  std::int64_t parameters = 0;         ///< of the layer; the router's too where the layer owns it
  std::int64_t active_parameters = 0;  ///< of them, those that one token meets
  double flops = 0.0;                  ///< multiplications and additions of all matrix products, nothing dropped
  double bytes = 0.0;                  ///< weights of the experts used, router, tokens once, output once
};

/// Distinct experts that `tokens` tokens meet when every expert is equally likely:
/// experts * (1 - (1 - top_k / experts)^tokens).
template <class Layer>
double expected_experts(std::int64_t tokens) {
  double const experts = Layer::dims.experts;
  return experts * (1.0 - std::pow(1.0 - Layer::dims.top_k / experts, static_cast<double>(tokens)));
}

/// Costs of a layer for so many tokens. `experts_used` is the number of experts with at least one row, by default
/// what uniform routing would use; it only matters for `bytes`.
template <class Layer>
layer_costs costs(std::int64_t tokens, double experts_used = -1.0) {
  constexpr shape dims = Layer::dims;
  constexpr expert_traits expert = Layer::expert_traits;
  constexpr router_traits router = Layer::router_traits;
  constexpr std::int64_t matrices = expert.input_projections() + 1;
  constexpr std::int64_t expert_weights = matrices * dims.hidden * dims.intermediate;
  constexpr std::int64_t expert_bias =
      expert.bias ? std::int64_t{expert.input_projections()} * dims.intermediate + dims.hidden : 0;
  constexpr std::int64_t shared_weights = matrices * dims.hidden * expert.shared_intermediate;
  constexpr std::int64_t shared_gate_weights = expert.gate == shared_gate::sigmoid ? dims.hidden : 0;
  constexpr std::int64_t router_matrix = router.precomputed ? 0 : std::int64_t{dims.experts} * dims.hidden;
  constexpr std::int64_t router_vectors =
      (router.bias ? dims.experts : 0) + (router.correction_bias ? dims.experts : 0);
  constexpr std::int64_t owned_router =
      router.gate == gate_owner::layer ? router_matrix + router_vectors : std::int64_t{0};
  std::int64_t router_rows = dims.experts, norms = 0;  // of all gates and norms of router::stratified
  if constexpr (router.stratification.strata > 0) {
    for (int i = 1; i < router.stratification.strata; ++i) router_rows += dims.experts - Layer::router::first_expert(i);
    if (router.stratification.norms) norms = std::int64_t{2} * router.stratification.strata * dims.hidden;
  }

  if (experts_used < 0.0) experts_used = expected_experts<Layer>(tokens);
  double const count = static_cast<double>(tokens);
  double const element_bytes = sizeof(typename Layer::element);
  layer_costs result;
  result.parameters = owned_router / dims.experts * router_rows + norms +
                      dims.experts * (expert_weights + expert_bias) + shared_weights + shared_gate_weights;
  result.active_parameters =
      owned_router + dims.top_k * (expert_weights + expert_bias) + shared_weights + shared_gate_weights;
  result.flops =
      2.0 * count *
      static_cast<double>(router_matrix + dims.top_k * expert_weights + shared_weights + shared_gate_weights);
  if (tokens > 0) {
    result.bytes = element_bytes * (experts_used * static_cast<double>(expert_weights + expert_bias) +
                                    static_cast<double>(shared_weights + shared_gate_weights)) +
                   4.0 * static_cast<double>(router_matrix + router_vectors) +
                   2.0 * element_bytes * count * dims.hidden;
  }
  return result;
}

}  // namespace switchyard
