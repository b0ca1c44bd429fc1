#pragma once

#include <switchyard/layer.hpp>
#include <switchyard/router/by_logits.hpp>

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

/// What one `forward` has to do at least. Where tokens make several passes: one pass, all experts open; flops and the experts'
/// part of the bytes grow with the passes. Where the router chooses null experts, too: every expert is equally likely, but
/// `active_parameters` are those of a token that chooses none of them.
struct layer_costs {
  std::int64_t parameters = 0;         ///< of the layer; the router's too where the layer owns it
  std::int64_t active_parameters = 0;  ///< of them, those that one token meets
  double flops = 0.0;                  ///< multiplications and additions of all matrix products, nothing dropped
  double bytes = 0.0;                  ///< weights of the experts used, router, tokens once, output once
};

/// Distinct experts of the shape that `tokens` tokens meet when every expert is equally likely:
/// experts * (1 - (1 - top_k / all experts)^tokens), where a token chooses once.
template <class Layer>
double expected_experts(std::int64_t tokens) {
  double const experts = Layer::dims.experts, all = Layer::all_experts;
  constexpr int choices = Layer::router::choices, of_a_choice = Layer::dims.top_k / choices;
  return experts * (1.0 - std::pow(1.0 - of_a_choice / all, static_cast<double>(tokens * choices)));
}

/// Costs of a layer for so many tokens. `experts_used` is the number of experts with at least one row, by default
/// what uniform routing would use; it only matters for `bytes`.
template <class Layer>
layer_costs costs(std::int64_t tokens, double experts_used = -1.0) {
  constexpr shape dims = Layer::dims;
  constexpr expert_costs expert = Layer::expert::template costs<Layer>();
  constexpr router_costs router = Layer::router::template costs<Layer>();
  constexpr bool owns_router = Layer::router_traits.owner == router_owner::layer;
  constexpr std::int64_t own = expert.matrices + expert.vectors - expert.common - expert.repeated;  // of an expert
  constexpr std::int64_t copies = expert.copies > 0 ? expert.copies : dims.experts;
  constexpr bool has_nulls = Layer::all_experts > dims.experts;
  constexpr std::int64_t most_rows = has_nulls && dims.top_k > dims.experts ? dims.experts : dims.top_k;  // of a token
  constexpr double rows = dims.top_k * (static_cast<double>(dims.experts) / Layer::all_experts);

  if (experts_used < 0.0) experts_used = expected_experts<Layer>(tokens);
  double const copies_used = experts_used < static_cast<double>(copies) ? experts_used : static_cast<double>(copies);
  double const count = static_cast<double>(tokens);
  double const element_bytes = sizeof(typename Layer::element);
  layer_costs result;
  result.parameters = (owns_router ? router.all : std::int64_t{0}) + router.layers + expert.common +
                      copies * (own + expert.others) + expert.shared + expert.output + expert.nulls;
  result.active_parameters = (owns_router ? router.matrix + router.vectors : std::int64_t{0}) + expert.common +
                             most_rows * own + expert.shared + expert.output;
  result.flops =
      2.0 * count * (static_cast<double>(router.matrix + expert.shared) + rows * static_cast<double>(expert.matrices));
  if (tokens > 0) {
    result.bytes = element_bytes * (copies_used * static_cast<double>(own) +
                                    static_cast<double>(expert.common + expert.shared + expert.output + expert.nulls)) +
                   router.matrix_bytes * static_cast<double>(router.matrix) +
                   4.0 * static_cast<double>(router.vectors) + 2.0 * element_bytes * count * dims.hidden;
  }
  return result;
}

}  // namespace switchyard
