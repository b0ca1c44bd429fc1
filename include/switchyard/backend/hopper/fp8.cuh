#pragma once

#include <switchyard/backend/cuda/half_rows.cuh>
#include <switchyard/backend/cuda/instructions.cuh>
#include <switchyard/backend/cuda/launch.cuh>
#include <switchyard/backend/cuda/product_args.cuh>
#include <switchyard/backend/hopper/tuning.cuh>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/expert/stored_as.hpp>
#include <switchyard/quantised/scaled.hpp>

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

/// What products of E4M3 weights and E4M3 rows have besides those of elements: rows that are rounded, and scales.
///
/// A stage has 128 of the depth, whose sums the tensor cores make with few bits, and which have one scale for each row and one for each square of
/// weights. Sums of stages are scaled and added as floats.
/// Source: DeepSeek-AI 2024, DeepSeek-V3, section 3.3.
namespace switchyard::hopper {

using namespace cuda;

/// The scales of weights in E4M3: of squares of 128 x 128, or of a whole matrix.
template <class Operand>
struct fp8_scales {
  static constexpr bool exist = false;
};
template <class Element>
struct fp8_scales<quantised_matrix<Element, quantised::fp8_block>> {
  static constexpr bool exist = true, of_squares = true;
  static_assert(quantised::fp8_block::side == rounded_rows::group);
  /// Those of the features around this one, in the order of the depth.
  __device__ static float const* along_depth(quantised::fp8_block const& m, int expert, int feature) {
    return m.scale_inv + expert * m.squares() + feature / m.side * divide_up(m.columns, m.side);
  }
};
template <class Element, class Scale>
struct fp8_scales<quantised_matrix<Element, quantised::fp8_tensor<Scale>>> {
  static constexpr bool exist = true, of_squares = false;
  __device__ static float of_matrix(quantised::fp8_tensor<Scale> const& m, int expert) {
    return static_cast<float>(m.scale[expert]);
  }
};

/// A problem whose rows are `rounded_rows`.
template <class Problem>
struct of_rounded_rows : Problem {};
template <class Problem>
inline constexpr bool multiplies_fp8 = false;
template <class Problem>
inline constexpr bool multiplies_fp8<of_rounded_rows<Problem>> = true;

/// A thread's share of the scales of a tile's stages: those of a row, and of the squares of gate or weight.
template <class Problem, int Rows>
class scale_copies {
  using scales = fp8_scales<typename Problem::operand>;

 public:
  template <class Side, class Tile>
  __device__ scale_copies(Side const& side, Tile const& tile, int feature) : pairs_(side.rounded.pairs) {
    int const thread = static_cast<int>(threadIdx.x) % 128, matrix = tile.matrix;
    if (thread < Rows && thread < tile.rows) of_row_ = side.rounded.scales + tile.first_row + thread;
    if constexpr (scales::of_squares) {
      if (thread == 0) of_weights_ = scales::along_depth(side.weight.operand.of, matrix, feature);
      if (Problem::gated && thread == 1) of_weights_ = scales::along_depth(side.gate.operand.of, matrix, feature);
    }
  }
  /// Copies those of a step.
  __device__ void enqueue(std::uint32_t to, int step) const {
    unsigned const thread = threadIdx.x % 128;
    if (of_row_ != nullptr) copy_word_async(to + 4 * thread, of_row_ + step * pairs_, 4);
    if (of_weights_ != nullptr) copy_word_async(to + 4 * (Rows + thread), of_weights_ + step, 4);
  }

 private:
  std::int64_t pairs_;
  float const *of_row_ = nullptr, *of_weights_ = nullptr;
};

/// What the sums of a stage are multiplied by, in a thread that has sums of two rows; those of gate features come first.
template <class Problem, int Rows>
class stage_factors {
 public:
  __device__ stage_factors(std::uint32_t scales, int row, int rows) {
    auto const scale = [&](int at) {
      return __uint_as_float(load_shared_word(scales + 4 * static_cast<unsigned>(at)));
    };
    float weight = 1.0f, gate = 1.0f;
    if constexpr (fp8_scales<typename Problem::operand>::of_squares) {
      weight = scale(Rows);
      if constexpr (Problem::gated) gate = scale(Rows + 1);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float const of_row = row + 8 * h < rows ? scale(row + 8 * h) : 0.0f;
      weight_[h] = of_row * weight;
      gate_[h] = of_row * gate;
    }
  }
  template <int Sums>
  __device__ void add(float (&sums)[Sums], float const (&of_stage)[Sums]) const {
#pragma unroll
    for (int i = 0; i < Sums; ++i) {
      bool const of_gate = Problem::gated && i < Sums / 2;
      sums[i] = fmaf((of_gate ? gate_ : weight_)[i / 2 % 2], of_stage[i], sums[i]);
    }
  }

 private:
  float weight_[2], gate_[2];
};

/// Multiplies sums by the scales of their matrices, where these have one each.
template <class Problem, class Side, int Sums>
__device__ void scale_sums(float (&sums)[Sums], Side const& side, int matrix) {
  using scales = fp8_scales<typename Problem::operand>;
  if constexpr (!scales::of_squares) {
    float const weight = scales::of_matrix(side.weight.operand.of, matrix);
    float gate = weight;
    if constexpr (Problem::gated) gate = scales::of_matrix(side.gate.operand.of, matrix);
#pragma unroll
    for (int i = 0; i < Sums; ++i) sums[i] *= i < Sums / 2 ? gate : weight;
  }
}

/// Rows to be rounded: tokens, or those of the plan.
template <class Element>
struct rounding_args {
  Element const* rows;  ///< [most, depth], each at a multiple of 16 bytes
  std::int64_t stride;
  int depth, top_k;
  std::int64_t most;
  std::int32_t const* end;  ///< how many rows the plan has, on the device; null: tokens
  row_exponents exponents;  ///< of half elements between the products
  rounded_rows to;
};

inline constexpr int rounding_threads = 256, rounding_lanes = 16;  // of a group: eight values each

/// code = value / scale, scale = largest magnitude / 448. A group with a value that is no number has a scale that is none, or infinite.
template <class Element>
__global__ void __launch_bounds__(rounding_threads) round_rows(rounding_args<Element> const of) {
#if __CUDA_ARCH__ >= 890
  int const groups = of.depth / rounded_rows::group, lane = static_cast<int>(threadIdx.x) % rounding_lanes;
  std::int64_t const index = (std::int64_t{blockIdx.x} * rounding_threads + threadIdx.x) / rounding_lanes;
  std::int64_t const row = index / groups;
  bool const exists = row < (of.end != nullptr ? *of.end : tokens_at_hand(of.most, of.to.pass));
  int const feature = static_cast<int>(index % groups) * rounded_rows::group + lane * 8;
  float values[8] = {};
  if (exists) to_floats<Element>(*reinterpret_cast<chunk const*>(of.rows + row * of.stride + feature), values);
  if constexpr (std::is_same_v<Element, half>) {
    if (exists && of.exponents.any != nullptr && *of.exponents.any != 0) {
      float const factor = power_of_two(of.exponents.of(row, feature));
#pragma unroll
      for (float& value : values) value *= factor;
    }
  }
  std::uint32_t largest = 0;  // as bits, in which NaN is larger than any number
#pragma unroll
  for (float value : values) largest = max(largest, __float_as_uint(value) & 0x7fffffffu);
#pragma unroll
  for (int distance = 1; distance < rounding_lanes; distance *= 2) {
    largest = max(largest, __shfl_xor_sync(~0u, largest, distance));
  }
  if (!exists) return;
  float const scale = __fdiv_rn(__uint_as_float(largest), 448.0f);
  std::uint32_t words[2];
#pragma unroll
  for (int w = 0; w < 2; ++w) {
    float scaled[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) scaled[i] = largest == 0 ? 0.0f : __fdiv_rn(values[4 * w + i], scale);
    asm("{.reg .b16 l, h; cvt.rn.satfinite.e4m3x2.f32 l, %2, %1; cvt.rn.satfinite.e4m3x2.f32 h, %4, %3; mov.b32 %0, "
        "{l, h};}"
        : "=r"(words[w])
        : "f"(scaled[0]), "f"(scaled[1]), "f"(scaled[2]), "f"(scaled[3]));
  }
  *reinterpret_cast<uint2*>(of.to.codes + row * of.depth + feature) = make_uint2(words[0], words[1]);
  float* const scales = of.to.scales + feature / rounded_rows::group * of.to.pairs;
  if (of.end != nullptr) {
    if (lane == 0) scales[row] = scale;
  } else {
    for (int k = lane; k < of.top_k; k += rounding_lanes) {
      std::int32_t const at = of.to.row_of[row * of.top_k + k];
      if (at >= 0) scales[at] = scale;
    }
  }
#endif
}

/// Enqueues it for the rows of a product.
template <class Problem>
void enqueue_rounding(launch_queue const& queue, product_args<typename Problem::operand> const& product_of) {
  using element = typename Problem::element;
  auto const& side = product_of.routed;
  rounding_args<element> of{side.rows,         side.row_stride, side.depth, product_of.top_k,
                            product_of.tokens, nullptr,         {},         side.rounded};
  if constexpr (!Problem::gathers) {
    of.most = product_of.experts.most;
    of.end = product_of.experts.end + product_of.experts.count - 1;
    of.exponents = side.exponents;
  }
  launch(queue, "round_rows", round_rows<element>,
         divide_up(of.most * (side.depth / rounded_rows::group) * rounding_lanes, rounding_threads), rounding_threads,
         0, of);
}

}  // namespace switchyard::hopper
