#pragma once

#include <switchyard/backend/cuda/instructions.cuh>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/half.hpp>

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

/// What keeps rows of half elements from becoming infinite between the two products and after them: half ends at 65504.
///
/// Rows of the second product are floats. Rows of the first one stay half, which tensor cores multiply by half weights; where
/// some would be infinite, every 32 features of a row are divided by a power of two of their own. The second product
/// multiplies rows by what brings all of a row to its largest exponent, and the sums by that power. A call without such rows
/// reads one number to know it.
namespace switchyard::cuda {

/// What the rows of the second product, which are summed, are stored as.
template <class Element>
using summed_row = std::conditional_t<std::is_same_v<Element, half>, float, Element>;

inline constexpr int exponent_features = 32;  ///< that have one exponent

constexpr int exponents_of_row(int features) { return static_cast<int>(divide_up(features, exponent_features)); }

/// The exponents of the rows between the products. Those of neighbouring rows are neighbours, for a warp writes them at once.
struct row_exponents {
  std::uint8_t* first = nullptr;  ///< [each, rows]: features were divided by 2 to that power; null: never
  std::int32_t* any = nullptr;    ///< 0 where all are
  int each = 0;                   ///< of a row
  std::int64_t rows = 0;

  /// That of a feature.
  __device__ std::uint8_t& of(std::int64_t row, int feature) const {
    return first[feature / exponent_features * rows + row];
  }
};

__device__ inline float power_of_two(int exponent) {
  return __uint_as_float(static_cast<unsigned>(127 + exponent) << 23);
}

/// The exponent of features of which the largest magnitude is given by its bits: 0 where half holds it, and where it is
/// infinite or NaN already.
__device__ inline int exponent_for_half(std::uint32_t largest) {
  bool const fits = largest < 0x477ff000u;  // less than 65520, which rounds to infinity
  return fits || largest >= 0x7f800000u ? 0 : static_cast<int>(largest >> 23) - 127 - 14;
}

/// The exponent of 32 features that four neighbouring lanes have eight of each; writes it, by the first of them.
__device__ inline int write_exponent(row_exponents const& to, std::int64_t row, int feature, bool exists,
                                     float const (&values)[8]) {
  int const lane = static_cast<int>(threadIdx.x) % 32;
  std::uint32_t largest = 0;
#pragma unroll
  for (float value : values) largest = max(largest, __float_as_uint(value) & 0x7fffffffu);
  unsigned const four = 0xfu << (lane & ~3);
  largest = max(largest, __shfl_xor_sync(four, largest, 1));
  largest = max(largest, __shfl_xor_sync(four, largest, 2));
  int const exponent = exponent_for_half(largest);
  if (exists && lane % 4 == 0) {
    to.of(row, feature) = static_cast<std::uint8_t>(exponent);
    if (exponent != 0) atomicOr(to.any, 1);
  }
  return exponent;
}

/// The largest exponent of a row.
__device__ inline int largest_exponent(row_exponents const& of, std::int64_t row) {
  int largest = 0;
  for (int i = 0; i < of.each; ++i) largest = max(largest, static_cast<int>(of.of(row, i * exponent_features)));
  return largest;
}

/// Brings eight features of a row in shared memory to the row's largest exponent.
__device__ inline void rescale_chunk(char* at, int largest, int exponent) {
  if (largest == exponent) return;
  float values[8];
  chunk& elements = *reinterpret_cast<chunk*>(at);
  to_floats<half>(elements, values);
  int const less = largest - exponent;
  float const factor = less > 60 ? 0.0f : power_of_two(-less);
#pragma unroll
  for (float& value : values) value *= factor;
  elements = from_floats<half>(values);
}

}  // namespace switchyard::cuda
