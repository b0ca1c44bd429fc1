#pragma once

#include "device.cuh"

#include <switchyard/core/bfloat16.hpp>

#include <cmath>
#include <cstdint>
#include <vector>

namespace switchyard::bench {

/// Outputs that are as far from each other, by the Frobenius norm of the difference over that of the right one, are not
/// those of the same layer: rounding to bfloat16 between the products makes a few thousandths.
inline constexpr double bfloat16_tolerance = 1e-2;

/// One warp for each row: squares of its difference and of what is right, [rows, 2].
template <class T>
__global__ void square_rows(bfloat16 const* got, T const* right, std::int64_t rows, int columns, double* squares) {
  std::int64_t const row = thread_index() / 32;
  int const lane = static_cast<int>(threadIdx.x % 32);
  if (row >= rows) return;
  double difference = 0.0, length = 0.0;
  for (int i = lane; i < columns; i += 32) {
    double const g = static_cast<float>(got[row * columns + i]);
    double r;
    if constexpr (sizeof(T) == sizeof(bfloat16)) {
      r = static_cast<float>(right[row * columns + i]);
    } else {
      r = right[row * columns + i];
    }
    difference += (g - r) * (g - r);
    length += r * r;
  }
  difference = sum_of_warp(difference);
  length = sum_of_warp(length);
  if (lane == 0) {
    squares[2 * row] = difference;
    squares[2 * row + 1] = length;
  }
}

/// Relative Frobenius distance of two matrices; rows for which `counts(row)` is false are left out. NaN where one is.
template <class T, class Counts>
double distance(bfloat16 const* got, T const* right, std::int64_t rows, int columns, cudaStream_t stream,
                Counts const& counts) {
  device_memory<double> squares(2 * rows);
  square_rows<<<static_cast<unsigned>((rows + 7) / 8), 256, 0, stream>>>(got, right, rows, columns, squares.data());
  check_cuda(cudaGetLastError());
  check_cuda(cudaStreamSynchronize(stream));
  std::vector<double> const sums = copied(squares.data(), squares.size());
  double difference = 0.0, length = 0.0;
  for (std::int64_t row = 0; row < rows; ++row) {
    if (!counts(row)) continue;
    difference += sums[2 * row];
    length += sums[2 * row + 1];
  }
  return length == 0.0 && difference == 0.0 ? 0.0 : std::sqrt(difference / length);
}

}  // namespace switchyard::bench
