#pragma once

#include <switchyard/compression/matrix_product.hpp>
#include <switchyard/compression/units.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/view.hpp>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>

namespace switchyard::compression {

/// Writes factors of the best approximation of a matrix [rows, columns] that has the rank of `left` [rows, rank] and `right` [rank,
/// columns]: left x right, where the rank is at most the smaller size of the matrix. `lapack_svd` (compression/lapack_svd.hpp) is one.
using truncated_svd = std::function<void(view<float const> change, view<float> left, view<float> right)>;

/// rows = centre + left x right, [intermediate, columns], in float: the design matrix of an expert whose change is of low rank. A centre
/// whose data are null is a matrix of zeros. Memory: `right` once more.
inline void add_low_rank(view<float const> centre, view<float const> left, view<float const> right, view<float> rows,
                         cpu_context const& context = {}) {
  if (left.rows != centre.rows || right.columns != centre.columns || left.columns != right.rows) {
    fail("compression::add_low_rank, factors",
         std::to_string(centre.rows) + " x rank and rank x " + std::to_string(centre.columns),
         std::to_string(left.rows) + " x " + std::to_string(left.columns) + " and " + std::to_string(right.rows) +
             " x " + std::to_string(right.columns));
  }
  if (rows.rows != centre.rows || rows.columns != centre.columns) {
    fail("compression::add_low_rank, rows", std::to_string(centre.rows) + " x " + std::to_string(centre.columns),
         std::to_string(rows.rows) + " x " + std::to_string(rows.columns));
  }
  if (left.columns == 0) {
    for (std::int64_t r = 0; r < rows.rows; ++r) {
      for (std::int64_t i = 0; i < rows.columns; ++i) {
        rows.row(r)[i] = centre.data == nullptr ? 0.0f : centre.row(r)[i];
      }
    }
    return;
  }
  matrix transposed(right.columns, right.rows);
  detail::for_each_square(right.rows, right.columns,
                          [&](std::int64_t k, std::int64_t i) { transposed.row(i)[k] = right.row(k)[i]; });
  multiply_by_transposed(left, transposed, context,
                         [&](std::int64_t row, std::int64_t first, int count, float const* products) {
                           float* const to = rows.row(row) + first;
                           if (centre.data == nullptr) {
                             std::copy_n(products, count, to);
                             return;
                           }
                           float const* const from = centre.row(row) + first;
                           for (int i = 0; i < count; ++i) to[i] = from[i] + products[i];
                         });
}

}  // namespace switchyard::compression
