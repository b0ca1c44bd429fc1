#pragma once

#include <switchyard/backend/cpu/tile.hpp>
#include <switchyard/core/view.hpp>

#include <algorithm>
#include <cstdint>

/// One block of a matrix product: up to `block_rows` rows times up to `block_columns` output features.
namespace switchyard::backend::detail {

inline constexpr int block_rows = 64;
inline constexpr int block_columns = 64;

/// Depth of a piece of the product. A register tile's operands of this depth fit the first-level cache.
inline constexpr std::int64_t piece_depth = 1024;

/// Weights whose input features are not contiguous are packed piece by piece: small enough for any stack.
inline constexpr int packed_columns = 16;
inline constexpr std::int64_t packed_depth = 256;

/// sums[r][j] += rows[r] . weight(expert, first + j), `columns` features from `first` on.
template <element Element>
void add_product(instruction_set set, Element const* const* rows, int row_count, weight_view<Element> weight,
                 std::int64_t expert, std::int64_t first, int columns, std::int64_t depth, float* sums,
                 std::int64_t stride) {
  Element const* const matrix = weight.data + expert * weight.expert_stride + first * weight.row_stride;
  Element const* piece[block_rows];
  if (weight.column_stride == 1) {
    for (std::int64_t k = 0; k < depth; k += piece_depth) {
      for (int r = 0; r < row_count; ++r) piece[r] = rows[r] + k;
      multiply_add(set, piece, row_count, matrix + k, weight.row_stride, columns, std::min(piece_depth, depth - k),
                   sums, stride);
    }
    return;
  }
  Element packed[packed_columns * packed_depth];
  for (std::int64_t k = 0; k < depth; k += packed_depth) {
    std::int64_t const length = std::min(packed_depth, depth - k);
    for (int r = 0; r < row_count; ++r) piece[r] = rows[r] + k;
    for (int j = 0; j < columns; j += packed_columns) {
      int const width = std::min(packed_columns, columns - j);
      for (std::int64_t i = 0; i < length; ++i) {
        Element const* const from = matrix + j * weight.row_stride + (k + i) * weight.column_stride;
        for (int c = 0; c < width; ++c) packed[c * packed_depth + i] = from[c * weight.row_stride];
      }
      multiply_add(set, piece, row_count, packed, packed_depth, width, length, sums + j, stride);
    }
  }
}

}  // namespace switchyard::backend::detail
