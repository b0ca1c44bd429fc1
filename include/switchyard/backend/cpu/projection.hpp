#pragma once

#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/product.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/view.hpp>

#include <algorithm>
#include <cstdint>

/// A dense linear map of rows.
namespace switchyard::cpu {

template <class Row, class Element>
struct linear_map {
  view<Row const> rows;
  int features;
  Element const* weight;  ///< [features, columns of rows]
  Element const* bias;    ///< [features], null: none
};

/// Calls `use(row, first, count, values)` with values[i] = rows[row] . weight (first + i) + bias, for all rows and features in blocks.
template <class Row, class Element, class Use>
void map_rows(linear_map<Row, Element> const& of, cpu_context const& context, Use const& use) {
  int const depth = static_cast<int>(of.rows.columns);
  int const blocks = static_cast<int>(divide_up(of.features, block_features));
  row_kernels<weight_view<Element>> const kernels = row_kernels_of<weight_view<Element>>(context.instructions);
  parallel_for(context, divide_up(of.rows.rows, block_rows) * blocks, [&](std::int64_t item) {
    std::int64_t const first_row = item / blocks * block_rows;
    int const rows = static_cast<int>(std::min<std::int64_t>(block_rows, of.rows.rows - first_row));
    int const first = static_cast<int>(item % blocks) * block_features;
    int const count = std::min(block_features, of.features - first);
    float values[block_rows * block_features];
    auto const load = [&](int r, int k, int length, float* to) -> float const* {
      Row const* const row = of.rows.row(first_row + r) + k;
      for (int i = 0; i < length; ++i) to[i] = static_cast<float>(row[i]);
      return to;
    };
    multiply_block<Element>(kernels, rows, depth, {of.weight + first * std::int64_t{depth}, depth, 1, count}, load,
                            values, block_features);
    for (int r = 0; r < rows; ++r) {
      float* const row = values + r * block_features;
      for (int f = 0; of.bias != nullptr && f < count; ++f) row[f] += static_cast<float>(of.bias[first + f]);
      use(first_row + r, first, count, row);
    }
  });
}

}  // namespace switchyard::cpu
