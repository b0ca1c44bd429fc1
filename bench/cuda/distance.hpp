#pragma once

#include "device.hpp"
#include "kernels.hpp"

#include <cmath>
#include <cstdint>
#include <vector>

namespace switchyard::bench {

/// Outputs that are as far from each other, by the Frobenius norm of the difference over that of the right one, are not
/// those of the same layer: rounding to bfloat16 between the products makes a few thousandths.
inline constexpr double bfloat16_tolerance = 1e-2;

/// Relative Frobenius distance of two matrices; rows for which `counts(row)` is false are left out. NaN where one is.
template <class T, class Counts>
double distance(bfloat16 const* got, T const* right, std::int64_t rows, int columns, cudaStream_t stream,
                Counts const& counts) {
  device_memory<double> const squares(2 * rows);
  square_rows(got, right, rows, columns, squares.data(), stream);
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
