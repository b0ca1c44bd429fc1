#pragma once

#include <switchyard/backend/cpu/tile.hpp>
#include <switchyard/core/element.hpp>

#include <algorithm>
#include <cstdint>

/// Products of few rows, at the speed at which weights come from memory.
namespace switchyard::backend::detail {

/// Most rows and features of one product, whose sums are on the stack.
inline constexpr int block_rows = 32, block_features = 64;

/// What of products of few rows depends on the instruction set, see tile.inl.
template <class Element>
struct row_functions {
  void (*group)(Element const* const* rows, int row_count, std::int64_t depth, float* to);
  void (*put)(float const* values, int count, std::int64_t first, int row, int row_count, std::int64_t depth,
              float* to);
  void (*multiply)(float const* rows, int row_count, depth_piece const& piece, feature_tile<Element> const& weights,
                   feature_tile<Element> const& next, float* to, std::int64_t stride);
};

#define SWITCHYARD_ROW_FUNCTIONS(space) \
  { &space::group_rows<Element>, &space::put_in_group<Element>, &space::multiply_rows_by_features<Element> }
/// `set` must not be `automatic`.
template <class Element>
row_functions<Element> row_functions_of(instruction_set set) {
#if defined(__x86_64__)
  if (set >= instruction_set::avx512) return SWITCHYARD_ROW_FUNCTIONS(avx512);
  if (set == instruction_set::avx2) return SWITCHYARD_ROW_FUNCTIONS(avx2);
#else
  (void)set;
#endif
  return SWITCHYARD_ROW_FUNCTIONS(portable);
}
#undef SWITCHYARD_ROW_FUNCTIONS

/// The rows of a product, in groups.
struct grouped_rows {
  float const* first;
  int count;
};

/// to[r][f] = rows[r] . weights[f]. `next` is what the caller multiplies after it.
template <class Element>
void multiply_rows(row_functions<Element> const& with, grouped_rows const& rows, feature_tile<Element> const& weights,
                   std::int64_t depth, feature_tile<Element> const& next, float* to, std::int64_t stride) {
  if (weights.column_stride == 1) {
    return with.multiply(rows.first, rows.count, {depth, 0, depth}, weights,
                         next.column_stride == 1 ? next : feature_tile<Element>{}, to, stride);
  }
  // Weights whose input features are not contiguous are packed, some at a time.
  constexpr int packed_depth = 64;
  Element packed[block_features * packed_depth];
  float part[block_rows * block_features];
  for (std::int64_t k = 0; k < depth; k += packed_depth) {
    depth_piece const piece{depth, k, std::min<std::int64_t>(packed_depth, depth - k)};
    for (std::int64_t i = 0; i < piece.length; ++i) {
      Element const* const from = weights.rows + (k + i) * weights.column_stride;
      for (int f = 0; f < weights.features; ++f) packed[f * packed_depth + i] = from[f * weights.row_stride];
    }
    with.multiply(rows.first, rows.count, piece, {packed, packed_depth, 1, weights.features}, {}, part, block_features);
    for (int r = 0; r < rows.count; ++r) {
      for (int f = 0; f < weights.features; ++f) {
        float const value = part[r * block_features + f];
        to[r * stride + f] = k == 0 ? value : to[r * stride + f] + value;
      }
    }
  }
}

/// Features of an item of a product of `features` features, `depth` elements deep, that `items` experts and blocks of rows
/// have: long streams of memory are read faster, but all workers want something to do. No result depends on it.
template <class Element>
int features_of_item(std::int64_t depth, std::int64_t features, std::int64_t items, int workers) {
  constexpr std::int64_t streams_bytes = 256 * 1024, each_worker = 16;
  std::int64_t const by_memory = streams_bytes / (depth * static_cast<std::int64_t>(sizeof(Element)));
  std::int64_t const by_work = items * features / (each_worker * workers);
  std::int64_t const fit = std::clamp<std::int64_t>(std::min(by_memory, by_work), 8, block_features);
  return static_cast<int>(fit < 32 ? fit / 8 * 8 : fit / 32 * 32);  // whole vectors
}

}  // namespace switchyard::backend::detail
