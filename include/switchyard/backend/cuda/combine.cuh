#pragma once

#include <switchyard/backend/cuda/block_sums.cuh>
#include <switchyard/backend/cuda/half_rows.cuh>
#include <switchyard/backend/cuda/instructions.cuh>
#include <switchyard/backend/cuda/pass_size.cuh>
#include <switchyard/backend/cuda/steps.cuh>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/expert/null_experts.hpp>
#include <switchyard/layer.hpp>

#include <cmath>
#include <cstdint>

/// Step 4 of `backend::cuda`: each token's output from the rows of its experts.
namespace switchyard::cuda {

/// What combining reads and writes, all on the device.
template <class Element, class Row = summed_row<Element>>
struct combine_args {
  expert_results<Element, Row> results;
  bool weighs_input;  ///< rows have their weights already
  view<Element const> tokens;
  pass_size const* pass;  ///< null: all tokens
  view<Element> output;
  bool aligned;                 ///< tokens and output may be moved by 16 bytes
  std::uint8_t const* active;   ///< null: all
  std::int32_t const* experts;  ///< [tokens, top_k]
  float const* weights;         ///< [tokens, top_k]
  std::uint8_t const* dropped;  ///< [tokens, top_k], null without drops
  std::int32_t const* row_of;   ///< [tokens, top_k]
  switchyard::decisions decisions;
};

/// Threads of a block: 16 bytes each, as many as a token needs, at most so many.
inline constexpr int most_combine_threads = 256;
template <class Element>
constexpr int combine_threads(int hidden) {
  std::int64_t const chunks = divide_up(hidden * static_cast<std::int64_t>(sizeof(Element)), chunk_bytes);
  return chunks > most_combine_threads ? most_combine_threads : static_cast<int>(divide_up(chunks, 32)) * 32;
}

/// What a token's pairs bring, the same on all threads of its block.
template <int TopK, class Nulls>
struct token_pairs {
  std::int32_t rows[TopK];
  float weights[TopK];  ///< of the row; of the token where the pair was dropped
  unsigned lost[(TopK + 31) / 32];
  bool all_lost;
  float start;  ///< what pairs add that go nowhere
  null_part<Nulls> nulls;

  __device__ bool is_lost(int k) const { return (lost[k / 32] >> k % 32 & 1u) != 0; }
};

/// The part of the token in a mixture with a constant expert's vector, by a block. All threads of it have then read the token.
template <class Element>
__device__ float share_of_token(Element const* token, Element const* mixing, int hidden) {
  float sum = 0.0f;
  for (int h = static_cast<int>(threadIdx.x); h < hidden; h += static_cast<int>(blockDim.x)) {
    sum += static_cast<float>(token[h]) * (static_cast<float>(mixing[h]) - static_cast<float>(mixing[hidden + h]));
  }
  return 1.0f / (1.0f + std::exp(-sum_over_block<most_combine_threads / 32>(sum)));
}

/// Reads what belongs to the pairs of a token, a lane one pair, and writes what was decided about them. Called by whole blocks.
template <int TopK, class Nulls, class Element, class Row>
__device__ __forceinline__ token_pairs<TopK, Nulls> read_pairs(combine_args<Element, Row> const& args,
                                                               std::int64_t token, bool active) {
  int const thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  token_pairs<TopK, Nulls> pairs;
  pairs.all_lost = active;
  pairs.start = 0.0f;
#pragma unroll
  for (int first = 0; first < TopK; first += 32) {
    bool const has = first + lane < TopK;
    std::int64_t const pair = token * TopK + first + (has ? lane : 0);
    std::int32_t const row = args.row_of[pair];
    float const weight = args.weights[pair];
    bool const lost = args.dropped != nullptr && args.dropped[pair] != 0;
    float const factor = row < 0 ? weight : args.weighs_input ? args.results.scale : args.results.scale * weight;
    std::int32_t chosen = -1;
    if constexpr (Nulls::count > 0) chosen = args.experts[pair];
    unsigned const lost_lanes = __ballot_sync(~0u, lost);
    pairs.lost[first / 32] = lost_lanes;
#pragma unroll
    for (int k = first; k < TopK && k < first + 32; ++k) {
      pairs.rows[k] = __shfl_sync(~0u, row, k - first);
      pairs.weights[k] = __shfl_sync(~0u, factor, k - first);
      bool const is_lost = (lost_lanes >> (k - first) & 1u) != 0;
      pairs.all_lost = pairs.all_lost && is_lost;
      if constexpr (Nulls::count > 0) {
        std::int32_t const expert = __shfl_sync(~0u, chosen, k - first);
        if (Nulls::is_null(expert)) {
          int const hidden = static_cast<int>(args.tokens.columns);
          pairs.nulls.add(k, expert, args.results.scale * pairs.weights[k], [&](int mixing) {
            return share_of_token(args.tokens.row(token),
                                  args.results.constant_experts.mixing + std::int64_t{2} * mixing * hidden, hidden);
          });
          continue;
        }
        pairs.nulls.skip(k);
      }
      if (pairs.rows[k] < 0 && !is_lost) pairs.start += pairs.weights[k];
    }
    if (thread < 32 && has) {
      decisions const& to = args.decisions;
      if (to.experts != nullptr) to.experts[pair] = args.experts[pair];
      if (to.weights != nullptr) to.weights[pair] = lost ? 0.0f : weight;
      if (to.dropped != nullptr) to.dropped[pair] = lost;
    }
  }
  return pairs;
}

/// What multiplies the shared expert's row of a token. All threads of the block have then read the token.
template <class Element, class Row>
__device__ __forceinline__ float shared_weight_of(combine_args<Element, Row> const& args, Element const* token,
                                                  int hidden) {
  if (args.results.shared_gate == nullptr) return 1.0f;
  float sum = 0.0f;
  for (int h = static_cast<int>(threadIdx.x); h < hidden; h += static_cast<int>(blockDim.x)) {
    sum += static_cast<float>(token[h]) * static_cast<float>(args.results.shared_gate[h]);
  }
  // All wait, and write the output, which may be the tokens, when all have read.
  sum = sum_over_block<most_combine_threads / 32>(sum);
  return 1.0f / (1.0f + std::exp(-sum));
}

/// output[t] = sum over choices, in order, of weight * expert row, plus what dropped pairs add, plus what null experts add, plus the
/// shared expert.
/// A block per token; each thread has its own features. A pair that goes nowhere adds its weight, which is 0, or NaN where the
/// token could not be routed. A token that is not active gets zeros. Where zeros are replaced by the token's elements, there is nothing
/// but the rows of experts.
template <class Element, int TopK, dropped OnDrop, bool OutputBias = false, class Nulls = no_nulls,
          bool ReplacesZeros = false, class Row = summed_row<Element>>
__global__ void __launch_bounds__(most_combine_threads) combine_rows(combine_args<Element, Row> const args) {
  constexpr int width = chunk_bytes / static_cast<int>(sizeof(Element));
  std::int64_t const token = blockIdx.x;
  if (token >= tokens_at_hand(args.tokens.rows, args.pass)) return;
  int const hidden = static_cast<int>(args.tokens.columns);
  int const thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  Element const* const x = args.tokens.row(token);
  Element* const y = args.output.row(token);
  bool const active = args.active == nullptr || args.active[token] != 0;
  token_pairs<TopK, Nulls> const pairs = read_pairs<TopK, Nulls>(args, token, active);
  bool const hand_through = OnDrop == dropped::input && pairs.all_lost;
  float const shared_weight = shared_weight_of(args, x, hidden);

  for (int first = thread * width; first < hidden; first += threads * width) {
    int const count = hidden - first < width ? hidden - first : width;
    bool const whole = args.aligned && count == width;
    float values[width], sum[width];
    auto const add = [&](float weight) {
#pragma unroll
      for (int i = 0; i < width; ++i) sum[i] += weight * values[i];
    };
    auto const read_row = [&]<class T>(T const* rows, std::int64_t row) {
      auto const* const chunks = reinterpret_cast<chunk const*>(rows + row * args.results.stride + first);
      constexpr int each = chunk_bytes / static_cast<int>(sizeof(T));
#pragma unroll
      for (int i = 0; i < width / each; ++i) {
        to_floats<T>(chunks[i], reinterpret_cast<float(&)[each]>(values[i * each]));
      }
    };
    float token_values[width];
    if ((OnDrop != dropped::zero || Nulls::count > 0 || ReplacesZeros) && active) {
      if (whole) {
        to_floats<Element>(*reinterpret_cast<chunk const*>(x + first), token_values);
      } else {
#pragma unroll
        for (int i = 0; i < width; ++i) token_values[i] = i < count ? static_cast<float>(x[first + i]) : 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < width; ++i) sum[i] = hand_through ? token_values[i] : pairs.start;
#pragma unroll
    for (int k = 0; k < TopK; ++k) {
      if (pairs.rows[k] >= 0) {
        read_row(args.results.rows, pairs.rows[k]);
        add(pairs.weights[k]);
      } else if (OnDrop == dropped::weighted_input && pairs.is_lost(k)) {
#pragma unroll
        for (int i = 0; i < width; ++i) sum[i] += pairs.weights[k] * token_values[i];
      }
    }
    if (ReplacesZeros && active) {
#pragma unroll
      for (int i = 0; i < width; ++i) sum[i] = sum[i] == 0.0f ? token_values[i] : sum[i];
    }
    if constexpr (Nulls::count > 0) {
      if (pairs.nulls.of_token != 0.0f) {
#pragma unroll
        for (int i = 0; i < width; ++i) sum[i] += pairs.nulls.of_token * token_values[i];
      }
    }
    if constexpr (Nulls::vectors > 0) {
#pragma unroll
      for (int k = 0; k < TopK; ++k) {
        if (pairs.nulls.vector[k] < 0) continue;
        Element const* const vector =
            args.results.constant_experts.vectors + std::int64_t{pairs.nulls.vector[k]} * hidden + first;
#pragma unroll
        for (int i = 0; i < width; ++i) {
          if (i < count) sum[i] += pairs.nulls.of_vector[k] * static_cast<float>(vector[i]);
        }
      }
    }
    if (args.results.shared_rows != nullptr && active) {
      read_row(args.results.shared_rows, token);
      add(shared_weight);
    }
    if (OutputBias && active) {
#pragma unroll
      for (int i = 0; i < width; ++i) {
        if (i < count) sum[i] += static_cast<float>(args.results.output_bias[first + i]);
      }
    }
    if (whole) {
      *reinterpret_cast<chunk*>(y + first) = from_floats<Element>(sum);
    } else {
#pragma unroll
      for (int i = 0; i < width; ++i) {
        if (i < count) y[first + i] = Element(sum[i]);
      }
    }
  }
}

}  // namespace switchyard::cuda
