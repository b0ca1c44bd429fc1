#pragma once

#include <switchyard/backend/cuda/block_sums.cuh>
#include <switchyard/backend/cuda/half_rows.cuh>
#include <switchyard/backend/cuda/instructions.cuh>
#include <switchyard/backend/cuda/launch.cuh>
#include <switchyard/core/bfloat16.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/half.hpp>

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

/// What `expert::top_k_units` does to rows between the two products.
namespace switchyard::cuda {

/// The rows of some experts, counted from the first one's on; arrays are on the device.
struct listed_rows {
  int experts;
  std::int32_t const* offsets;              ///< [experts + 1]: rows of those before each; the last is their number
  std::int32_t const* begin = nullptr;      ///< [experts], where the rows of each stand; null: at `offsets`
  std::int32_t const* expert_of = nullptr;  ///< [experts], their ids; null: those of the layer, in order
};

/// Rows of the first product as they stand in memory.
template <class Element>
struct inner_rows {
  Element* first;  ///< [rows, stride], each row at a multiple of 16 bytes
  std::int64_t stride;
  int features;
  row_exponents exponents;  ///< of half elements
  listed_rows listed;
  float const* unit_norms;  ///< [experts of the layer, features], factors by which values are ranked; null: none
};

/// The highest bits of a float that tell the elements of a type apart, whatever power of two they are multiplied by; of products with
/// norms, all.
template <class Element, bool Compensated>
inline constexpr int key_bits = Compensated                         ? 32
                                : std::is_same_v<Element, bfloat16> ? 16
                                : std::is_same_v<Element, half>     ? 19
                                                                    : 32;

/// Integers in the order of floats. What is no number comes after all others.
__device__ inline std::uint32_t order_key(float value) {
  std::uint32_t const bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return ~0u;
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

/// The expert of a row.
__device__ inline int expert_of_row(std::int32_t const* offsets, int experts, std::int64_t row) {
  int low = 0, high = experts;  // the last expert whose rows begin at or before it
  while (high - low > 1) {
    int const middle = (low + high) / 2;
    (offsets[middle] <= row ? low : high) = middle;
  }
  return low;
}

inline constexpr int most_keep_threads = 512, most_keep_chunks = 8;

/// Zeroes what is less than the `kept`-th largest value of a row, a block per row, `Chunks` times 16 bytes per thread.
///
/// row --> keys in registers --the threshold, bit by bit: how many are as large?--> row.
template <class Element, int Chunks, bool Compensated>
__global__ void __launch_bounds__(most_keep_threads) keep_largest(inner_rows<Element> const rows, int kept) {
  constexpr int width = chunk_bytes / static_cast<int>(sizeof(Element));
  listed_rows const& listed = rows.listed;
  std::int64_t row = blockIdx.x;
  if (row >= listed.offsets[listed.experts]) return;
  bool const apart = listed.begin != nullptr;
  int const at = Compensated || apart ? expert_of_row(listed.offsets, listed.experts, row) : 0;
  int const expert = listed.expert_of == nullptr ? at : listed.expert_of[at];
  if (apart) row += listed.begin[at] - listed.offsets[at];
  float const* const norms = Compensated ? rows.unit_norms + std::int64_t{expert} * rows.features : nullptr;
  Element* const values = rows.first + row * rows.stride;
  int const thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  bool const has_exponents = rows.exponents.any != nullptr && *rows.exponents.any != 0;
  std::uint32_t keys[Chunks][width];  // 0 behind the row's end: less than any threshold that is tried
#pragma unroll
  for (int c = 0; c < Chunks; ++c) {
    int const feature = (c * threads + thread) * width;
    float floats[width] = {};
    float factor = 1.0f;
    if (feature < rows.features) {
      to_floats<Element>(*reinterpret_cast<chunk const*>(values + feature), floats);
      if (has_exponents) factor = power_of_two(rows.exponents.of(row, feature));
    }
#pragma unroll
    for (int i = 0; i < width; ++i) {
      bool const is_there = feature + i < rows.features;
      float rank = floats[i] * factor;
      if (Compensated && is_there) rank *= norms[feature + i];
      keys[c][i] = is_there ? order_key(rank) : 0u;
    }
  }

  std::uint32_t least = 0;
#pragma unroll 1
  for (int bit = 31; bit >= 32 - key_bits<Element, Compensated>; --bit) {
    std::uint32_t const tried = least | 1u << bit;
    int count = 0;
#pragma unroll
    for (auto const& of_chunk : keys) {
#pragma unroll
      for (std::uint32_t key : of_chunk) count += key >= tried ? 1 : 0;
    }
    if (sum_over_block<most_keep_threads / 32>(count) >= kept) least = tried;
  }

#pragma unroll
  for (int c = 0; c < Chunks; ++c) {
    int const feature = (c * threads + thread) * width;
    if (feature >= rows.features) continue;
    float floats[width];
    chunk& elements = *reinterpret_cast<chunk*>(values + feature);
    to_floats<Element>(elements, floats);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      if (keys[c][i] < least) floats[i] = 0.0f;  // also behind the row's end, which nobody reads
    }
    elements = from_floats<Element>(floats);
  }
}

/// Enqueues it for at most so many rows.
template <int Features, bool Compensated, class Element>
void enqueue_keep_largest(launch_queue const& queue, inner_rows<Element> const& rows, std::int64_t most_rows,
                          int kept) {
  constexpr int chunks =
      static_cast<int>(divide_up(Features * static_cast<std::int64_t>(sizeof(Element)), chunk_bytes));
  static_assert(chunks <= most_keep_threads * most_keep_chunks,
                "switchyard: backend::cuda keeps a row of expert::top_k_units in a block's registers, which have room "
                "for 64 KB. Lower "
                "shape.intermediate.");
  constexpr int each = chunks <= most_keep_threads ? 1 : most_keep_chunks;
  constexpr int threads = static_cast<int>(divide_up(divide_up(chunks, each), 32)) * 32;
  launch(queue, "keep_largest", keep_largest<Element, each, Compensated>, most_rows, threads, 0, rows, kept);
}

}  // namespace switchyard::cuda
