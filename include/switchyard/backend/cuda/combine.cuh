#pragma once

#include <switchyard/backend/cuda/instructions.cuh>
#include <switchyard/backend/cuda/pass_size.cuh>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/layer.hpp>

#include <cmath>
#include <cstdint>

/// Step 4 of `backend::cuda`: each token's output from the rows of its experts.
namespace switchyard::backend::device {

/// What combining reads and writes, all on the device.
template <class Element>
struct combine_args {
  view<Element const> tokens;
  pass_size const* pass;  ///< null: all tokens
  view<Element> output;
  bool aligned;                 ///< tokens and output may be moved by 16 bytes
  std::uint8_t const* active;   ///< null: all
  std::int32_t const* experts;  ///< [tokens, top_k]
  float const* weights;         ///< [tokens, top_k]
  std::uint8_t const* dropped;  ///< [tokens, top_k], null without drops
  std::int32_t const* row_of;   ///< [tokens, top_k]
  Element const* outer;         ///< [rows, outer_stride]
  std::int64_t outer_stride;    ///< a multiple of 16 bytes
  Element const* shared_outer;  ///< [tokens, outer_stride], null without a shared expert
  Element const* shared_gate;   ///< [hidden], null without one
  switchyard::decisions decisions;
};

/// Threads of a block: 16 bytes each, as many as a token needs, at most 256.
template <class Layer>
struct combine_block {
  static constexpr std::int64_t chunks =
      divide_up(Layer::dims.hidden * static_cast<std::int64_t>(sizeof(typename Layer::element)), chunk_bytes);
  static constexpr int threads = chunks > 256 ? 256 : static_cast<int>(divide_up(chunks, 32)) * 32;
};

/// output[t] = sum over choices, in order, of weight * expert row, plus what dropped pairs add, plus the shared expert.
/// A block per token; each thread has its own features. A token that is not active gets zeros, and one whose router had
/// no choice gets NaN.
template <class Layer>
__global__ void __launch_bounds__(combine_block<Layer>::threads)
    combine_rows(combine_args<typename Layer::element> const args) {
  using element = typename Layer::element;
  constexpr int hidden = Layer::dims.hidden, top_k = Layer::dims.top_k, threads = combine_block<Layer>::threads;
  constexpr int width = chunk_bytes / static_cast<int>(sizeof(element));
  constexpr expert_traits traits = Layer::expert_traits;
  constexpr capacity_traits capacity = Layer::capacity_traits;
  constexpr float scale = static_cast<float>(traits.scale_numerator) / static_cast<float>(traits.scale_denominator);
  std::int64_t const token = blockIdx.x, pairs = token * top_k;
  if (token >= tokens_at_hand(args.tokens.rows, args.pass)) return;
  int const thread = static_cast<int>(threadIdx.x);
  element const* const x = args.tokens.row(token);
  element* const y = args.output.row(token);
  bool const active = args.active == nullptr || args.active[token] != 0;

  // A lane reads what belongs to one pair, and all lanes of the warp get it.
  int const lane = thread % 32;
  std::int32_t rows[top_k];
  float weights[top_k];
  bool all_dropped = active;
  float start = 0.0f;
#pragma unroll
  for (int first = 0; first < top_k; first += 32) {
    bool const has = first + lane < top_k;
    std::int64_t const pair = pairs + first + (has ? lane : 0);
    std::int32_t const row = args.row_of[pair];
    float const weight = args.weights[pair];
    bool const lost = capacity.drops && args.dropped[pair] != 0;
    unsigned const lost_lanes = __ballot_sync(~0u, lost);
#pragma unroll
    for (int k = first; k < top_k && k < first + 32; ++k) {
      rows[k] = __shfl_sync(~0u, row, k - first);
      weights[k] = __shfl_sync(~0u, weight, k - first);
      bool const is_lost = (lost_lanes >> (k - first) & 1u) != 0;
      all_dropped = all_dropped && is_lost;
      if (active && rows[k] < 0 && !is_lost) start = __int_as_float(0x7fffffff);
    }
    if (thread < 32 && has) {
      decisions const& to = args.decisions;
      if (to.experts != nullptr) to.experts[pair] = args.experts[pair];
      if (to.weights != nullptr) to.weights[pair] = lost ? 0.0f : weight;
      if (to.dropped != nullptr) to.dropped[pair] = lost;
    }
  }
  bool const hand_through = capacity.on_drop == dropped::input && all_dropped;

  float shared_weight = 1.0f;
  if constexpr (traits.gate == shared_gate::sigmoid) {
    __shared__ float partial[threads / 32];
    float sum = 0.0f;
    for (int h = thread; h < hidden; h += threads) {
      sum += static_cast<float>(x[h]) * static_cast<float>(args.shared_gate[h]);
    }
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
    if (thread % 32 == 0) partial[thread / 32] = sum;
    __syncthreads();  // and the output, which may be the tokens, is written by nobody before all have read
    sum = 0.0f;
    for (float p : partial) sum += p;
    shared_weight = 1.0f / (1.0f + std::exp(-sum));
  }

  for (int first = thread * width; first < hidden; first += threads * width) {
    int const count = hidden - first < width ? hidden - first : width;
    bool const whole = args.aligned && count == width;
    float values[width], sum[width];
    auto const add = [&](float weight) {
#pragma unroll
      for (int i = 0; i < width; ++i) sum[i] += weight * values[i];
    };
    auto const read_row = [&](element const* rows_of, std::int64_t row) {
      to_floats<element>(*reinterpret_cast<chunk const*>(rows_of + row * args.outer_stride + first), values);
    };
    float token_values[width];
    if constexpr (capacity.drops && capacity.on_drop != dropped::zero) {
      if (active && whole) {
        to_floats<element>(*reinterpret_cast<chunk const*>(x + first), token_values);
      } else if (active) {
#pragma unroll
        for (int i = 0; i < width; ++i) token_values[i] = i < count ? static_cast<float>(x[first + i]) : 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < width; ++i) sum[i] = hand_through ? token_values[i] : start;
#pragma unroll
    for (int k = 0; k < top_k; ++k) {
      if (rows[k] >= 0) {
        read_row(args.outer, rows[k]);
        add(Layer::router_traits.weighs_input ? scale : scale * weights[k]);
      } else if (capacity.on_drop == dropped::weighted_input && active) {
#pragma unroll
        for (int i = 0; i < width; ++i) sum[i] += weights[k] * token_values[i];
      }
    }
    if constexpr (traits.shared_intermediate > 0) {
      if (active) {
        read_row(args.shared_outer, token);
        add(shared_weight);
      }
    }
    if (whole) {
      *reinterpret_cast<chunk*>(y + first) = from_floats<element>(sum);
    } else {
#pragma unroll
      for (int i = 0; i < width; ++i) {
        if (i < count) y[first + i] = element(sum[i]);
      }
    }
  }
}

}  // namespace switchyard::backend::device
