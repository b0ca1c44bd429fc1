#pragma once

#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/route.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/dispatch/plan.hpp>
#include <switchyard/expert/null_experts.hpp>
#include <switchyard/layer.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>

/// Step 4 of `backend::cpu`: each token's output from the rows of its experts.
namespace switchyard::cpu {

/// What combining reads and writes.
template <class Element>
struct combination {
  view<Element const> tokens;  ///< as the experts saw them
  view<Element> output;
  int hidden, top_k;
  std::uint8_t const* active;         ///< null: all
  std::int32_t const* experts;        ///< [tokens, top_k], read where there are null experts
  std::int32_t const* row_of;         ///< [tokens, top_k]: the plan's
  float const* weights;               ///< [tokens, top_k]
  std::uint8_t const* dropped_pairs;  ///< [tokens, top_k]
  expert_results<Element> results;
  bool weighs_input;  ///< rows are weighted already
  dropped on_drop;
  bool replaces_zeros = false;  ///< an element of a sum over experts that is zero becomes that of the token
};

/// sigmoid(token . gate vector).
template <class Element>
float shared_expert_weight(Element const* token, Element const* gate, int hidden) {
  float sum = 0.0f;
  for (int h = 0; h < hidden; ++h) sum += static_cast<float>(token[h]) * static_cast<float>(gate[h]);
  return 1.0f / (1.0f + std::exp(-sum));
}

/// The part of the token in a mixture with a constant expert's vector.
template <class Element>
float share_of_token(Element const* token, Element const* mixing, int hidden) {
  float sum = 0.0f;
  for (int h = 0; h < hidden; ++h) {
    sum += static_cast<float>(token[h]) * (static_cast<float>(mixing[h]) - static_cast<float>(mixing[hidden + h]));
  }
  return 1.0f / (1.0f + std::exp(-sum));
}

/// output[t] = sum over choices, in order, of weight * expert row, plus what dropped pairs add, plus what null experts add, plus the
/// shared expert. Where zeros are replaced, there is nothing but the rows of experts. A pair that goes nowhere adds its weight, which is 0, or NaN where the token could not be routed. A token that is
/// not active gets zeros.
template <class Element, class Nulls = no_nulls>
void combine(combination<Element> const& of, cpu_context const& context) {
  constexpr int width = 256;  // output features at a time
  constexpr int tokens_per_item = 4;
  std::int64_t const tokens = of.tokens.rows;
  int const hidden = of.hidden, top_k = of.top_k;
  // Where rows are summed already, only dropped pairs are looked at.
  bool const summed = of.results.token_sums.data != nullptr;
  int const rows_or_drops = summed && of.on_drop != dropped::weighted_input ? 0 : top_k;

  parallel_for(context, divide_up(tokens, tokens_per_item), [&](std::int64_t item) {
    std::int64_t const end = std::min(tokens, (item + 1) * tokens_per_item);
    for (std::int64_t token = item * tokens_per_item; token < end; ++token) {
      Element const* const x = of.tokens.row(token);
      Element* const y = of.output.row(token);
      bool const active = is_active(of.active, token);
      bool all_dropped = active;
      float start = 0.0f;
      null_part<Nulls> nulls;
      for (int k = 0; k < top_k; ++k) {
        std::int64_t const pair = token * top_k + k;
        all_dropped = all_dropped && of.dropped_pairs[pair];
        if constexpr (Nulls::count > 0) {
          if (Nulls::is_null(of.experts[pair])) {
            nulls.add(k, of.experts[pair], of.results.scale * of.weights[pair], [&](int mixing) {
              return share_of_token(x, of.results.constant_experts.mixing + std::int64_t{2} * mixing * hidden, hidden);
            });
            continue;
          }
          nulls.skip(k);
        }
        if (of.row_of[pair] < 0 && !of.dropped_pairs[pair]) start += of.weights[pair];
      }
      bool const hand_through = of.on_drop == dropped::input && all_dropped;
      bool const shared = of.results.shared_rows != nullptr && active;
      float const shared_weight =
          shared && of.results.shared_gate != nullptr ? shared_expert_weight(x, of.results.shared_gate, hidden) : 1.0f;

      for (int first = 0; first < hidden; first += width) {
        int const count = std::min(width, hidden - first);
        float sum[width];
        for (int h = 0; h < count; ++h) sum[h] = hand_through ? static_cast<float>(x[first + h]) : start;
        if (summed) {
          float const* const from = of.results.token_sums.row(token) + first;
          for (int h = 0; h < count; ++h) sum[h] += from[h];
        }
        for (int k = 0; k < rows_or_drops; ++k) {
          std::int64_t const pair = token * top_k + k;
          std::int64_t const row = of.row_of[pair];
          if (row >= 0) {
            if (summed) continue;
            float const weight = of.weighs_input ? of.results.scale : of.results.scale * of.weights[pair];
            float const* const from = of.results.rows + row * hidden + first;
            for (int h = 0; h < count; ++h) sum[h] += weight * from[h];
          } else if (of.on_drop == dropped::weighted_input && of.dropped_pairs[pair]) {
            for (int h = 0; h < count; ++h) sum[h] += of.weights[pair] * static_cast<float>(x[first + h]);
          }
        }
        if (of.replaces_zeros && active) {
          for (int h = 0; h < count; ++h) sum[h] = sum[h] == 0.0f ? static_cast<float>(x[first + h]) : sum[h];
        }
        if constexpr (Nulls::count > 0) {
          if (nulls.of_token != 0.0f) {
            for (int h = 0; h < count; ++h) sum[h] += nulls.of_token * static_cast<float>(x[first + h]);
          }
        }
        if constexpr (Nulls::vectors > 0) {
          for (int k = 0; k < Nulls::top_k; ++k) {
            if (nulls.vector[k] < 0) continue;
            Element const* const vector =
                of.results.constant_experts.vectors + std::int64_t{nulls.vector[k]} * hidden + first;
            for (int h = 0; h < count; ++h) sum[h] += nulls.of_vector[k] * static_cast<float>(vector[h]);
          }
        }
        if (shared) {
          float const* const from = of.results.shared_rows + token * hidden + first;
          for (int h = 0; h < count; ++h) sum[h] += shared_weight * from[h];
        }
        if (of.results.output_bias != nullptr && active) {
          Element const* const bias = of.results.output_bias + first;
          for (int h = 0; h < count; ++h) sum[h] += static_cast<float>(bias[h]);
        }
        for (int h = 0; h < count; ++h) y[first + h] = Element(sum[h]);
      }
    }
  });
}

}  // namespace switchyard::cpu
