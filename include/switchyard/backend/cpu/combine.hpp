#pragma once

#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/route.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/dispatch/plan.hpp>
#include <switchyard/layer.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>

/// Step 4 of `backend::cpu`: each token's output from the rows of its experts.
namespace switchyard::backend::detail {

/// sigmoid(token . gate vector), for a gated shared expert; 1 otherwise.
template <class Layer>
float shared_expert_weight(forward_args<Layer> const& args, std::int64_t token) {
  if constexpr (Layer::expert_traits.gate == shared_gate::sigmoid) {
    auto const* const x = args.tokens.row(token);
    float sum = 0.0f;
    for (int h = 0; h < Layer::dims.hidden; ++h) {
      sum += static_cast<float>(x[h]) * static_cast<float>(args.weights.shared.gate[h]);
    }
    return 1.0f / (1.0f + std::exp(-sum));
  } else {
    return 1.0f;
  }
}

/// output[t] = sum over choices, in order, of weight * expert row, plus what dropped pairs add, plus the shared
/// expert. A token that is not active gets zeros.
template <class Layer>
void combine(forward_args<Layer> const& args, cpu_context const& where, dispatch_plan const& plan, float const* weights,
             std::uint8_t const* dropped_pairs, float const* outer, float const* shared_outer) {
  using element = typename Layer::element;
  constexpr int hidden = Layer::dims.hidden, top_k = Layer::dims.top_k;
  constexpr int width = 256;  // output features at a time
  constexpr expert_traits traits = Layer::expert_traits;
  constexpr capacity_traits capacity = Layer::capacity_traits;
  constexpr float scale = static_cast<float>(traits.scale_numerator) / static_cast<float>(traits.scale_denominator);
  constexpr int tokens_per_item = 4;
  std::int64_t const tokens = args.tokens.rows;

  parallel_for(where, divide_up(tokens, tokens_per_item), [&](std::int64_t item) {
    std::int64_t const end = std::min(tokens, (item + 1) * tokens_per_item);
    for (std::int64_t token = item * tokens_per_item; token < end; ++token) {
      element const* const x = args.tokens.row(token);
      element* const y = args.output.row(token);
      bool const active = is_active(args.active, token);
      bool all_dropped = active;
      for (int k = 0; k < top_k; ++k) all_dropped = all_dropped && dropped_pairs[token * top_k + k];
      bool const hand_through = capacity.on_drop == dropped::input && all_dropped;
      float const shared_weight = active && traits.shared_intermediate > 0 ? shared_expert_weight(args, token) : 0.0f;

      for (int first = 0; first < hidden; first += width) {
        int const count = std::min(width, hidden - first);
        float sum[width];
        for (int h = 0; h < count; ++h) sum[h] = hand_through ? static_cast<float>(x[first + h]) : 0.0f;
        for (int k = 0; k < top_k; ++k) {
          std::int64_t const pair = token * top_k + k;
          std::int64_t const row = plan.row_of[pair];
          if (row >= 0) {
            float const weight = Layer::router_traits.weighs_input ? scale : scale * weights[pair];
            float const* const from = outer + row * hidden + first;
            for (int h = 0; h < count; ++h) sum[h] += weight * from[h];
          } else if (capacity.on_drop == dropped::weighted_input && active) {
            for (int h = 0; h < count; ++h) sum[h] += weights[pair] * static_cast<float>(x[first + h]);
          }
        }
        if constexpr (Layer::expert_traits.shared_intermediate > 0) {
          if (active) {
            float const* const from = shared_outer + token * hidden + first;
            for (int h = 0; h < count; ++h) sum[h] += shared_weight * from[h];
          }
        }
        for (int h = 0; h < count; ++h) y[first + h] = element(sum[h]);
      }
    }
  });
}

}  // namespace switchyard::backend::detail
