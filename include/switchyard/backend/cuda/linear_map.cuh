#pragma once

#include <switchyard/backend/cuda/launch.cuh>
#include <switchyard/core/divide_up.hpp>

#include <cuda_runtime.h>

#include <cstdint>

/// Products of rows and small dense matrices in float, for what stands beside the experts.
namespace switchyard::cuda {

/// For heads whose weights stand one after the other: row t of head h . feature j of head h (+ bias).
template <class Row, class Weight>
struct linear_map {
  Row const* rows;  ///< [row_count, row_stride]; head h begins at column h * head_columns
  std::int64_t row_stride, row_count;
  int head_columns = 0;
  Weight const* weight;  ///< [heads, features, depth]
  Weight const* bias;    ///< [heads, features], null: none
  int heads = 1;
  int features, depth;
};

/// A block has 64 rows and 64 features, a thread 4 of each.
struct linear_map_tile {
  static constexpr int rows = 64, features = 64, depth = 16, threads = 256;
};

/// Calls `use(head, row, feature, value)` for each value, once.
template <class Row, class Weight, class Use>
__global__ void __launch_bounds__(linear_map_tile::threads) map_rows(linear_map<Row, Weight> const of, Use const use) {
  using tile = linear_map_tile;
  __shared__ float left[tile::depth][tile::rows + 4], right[tile::depth][tile::features + 4];
  std::int64_t const feature_blocks = (of.features + tile::features - 1) / tile::features;
  std::int64_t const row_blocks = (of.row_count + tile::rows - 1) / tile::rows;
  std::int64_t const block = blockIdx.x, head = block / (feature_blocks * row_blocks);
  std::int64_t const first_row = block / feature_blocks % row_blocks * tile::rows;
  int const first_feature = static_cast<int>(block % feature_blocks) * tile::features;
  int const thread = static_cast<int>(threadIdx.x), my_rows = thread / 16 * 4, my_features = thread % 16 * 4;
  Weight const* const weight = of.weight + head * of.features * of.depth;
  float sums[4][4] = {};
  for (int k = 0; k < of.depth; k += tile::depth) {
    for (int i = thread; i < tile::rows * tile::depth; i += tile::threads) {
      int const r = i / tile::depth, d = i % tile::depth;
      bool const exists = first_row + r < of.row_count && k + d < of.depth;
      std::int64_t const at = (first_row + r) * of.row_stride + head * of.head_columns + k + d;
      left[d][r] = exists ? static_cast<float>(of.rows[at]) : 0.0f;
    }
    for (int i = thread; i < tile::features * tile::depth; i += tile::threads) {
      int const j = i / tile::depth, d = i % tile::depth;
      bool const exists = first_feature + j < of.features && k + d < of.depth;
      right[d][j] = exists ? static_cast<float>(weight[std::int64_t{first_feature + j} * of.depth + k + d]) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int d = 0; d < tile::depth; ++d) {
      float4 const a = *reinterpret_cast<float4 const*>(&left[d][my_rows]);
      float4 const b = *reinterpret_cast<float4 const*>(&right[d][my_features]);
      float const of_rows[4] = {a.x, a.y, a.z, a.w}, of_features[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[r][j] += of_rows[r] * of_features[j];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    std::int64_t const row = first_row + my_rows + r;
    if (row >= of.row_count) break;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      int const feature = first_feature + my_features + j;
      if (feature >= of.features) break;
      float const bias = of.bias == nullptr ? 0.0f : static_cast<float>(of.bias[head * of.features + feature]);
      use(head, row, feature, sums[r][j] + bias);
    }
  }
}

template <class Row, class Weight, class Use>
void enqueue_map(launch_queue const& queue, linear_map<Row, Weight> const& of, Use const& use) {
  using tile = linear_map_tile;
  launch(queue, "map_rows", map_rows<Row, Weight, Use>,
         of.heads * divide_up(of.row_count, tile::rows) * divide_up(of.features, tile::features), tile::threads, 0, of,
         use);
}

}  // namespace switchyard::cuda
