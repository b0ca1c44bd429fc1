#pragma once

#include <switchyard/backend/cpu/kernels.hpp>
#include <switchyard/compression/progress.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/view.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace switchyard::compression {

/// Calls `use(row, first, count, products)` with products[i] = x[row] . a[first + i] for all rows of both matrices, [rows, depth] and
/// [features, depth]; `count` is at most 64.
///
/// Calls come from all threads, in any order, each row and feature once. Products are summed in float, pieces of 512 one by one, and
/// have the same bits for any number of threads. Memory: at most 1536 rows of x a second time. Returns false when `watch` returned
/// false. Throws `error` for matrices of other depths.
template <class Use>
bool multiply_by_transposed(view<float const> x, view<float const> a, cpu_context const& context, Use const& use,
                            keep_going const& watch = {}) {
  if (x.columns != a.columns || x.columns < 1) {
    fail("compression::multiply_by_transposed", "two matrices of the same depth, at least 1",
         std::to_string(x.columns) + " and " + std::to_string(a.columns));
  }
  cpu_context const chosen = cpu::resolved(context);
  auto const kernels = cpu::panel_kernels_of<weight_view<float>>(chosen.instructions, float_products::exact);
  std::int64_t const depth = x.columns, panel_floats = kernels.width * cpu::row_floats(depth);
  std::int64_t const group_panels = kernels.item_panels, group_rows = group_panels * kernels.width;
  std::int64_t const item_features = std::int64_t{kernels.item_tiles} * kernels.features;
  std::int64_t const block_panels = std::min<std::int64_t>(8 * group_panels, divide_up(x.rows, kernels.width));
  std::int64_t const block_rows = block_panels * kernels.width;
  constexpr std::int64_t line = 16;  // floats
  std::vector<float> memory(static_cast<std::size_t>(block_panels * panel_floats + line));
  float* const packed = memory.data() + (line - reinterpret_cast<std::uintptr_t>(memory.data()) / sizeof(float) % line);

  for (std::int64_t begin = 0; begin < x.rows; begin += block_rows) {
    if (watch && !watch(static_cast<double>(begin) / static_cast<double>(x.rows))) return false;
    std::int64_t const rows = std::min(block_rows, x.rows - begin);
    cpu::panel_rows const all{packed, static_cast<int>(rows), kernels.lanes, kernels.width};
    cpu::parallel_for(chosen, all.count(), [&](std::int64_t panel) {
      float const* row[cpu::most_panel_width] = {};
      int const count = all.rows_of(static_cast<int>(panel));
      for (int r = 0; r < count; ++r) row[r] = x.row(begin + panel * kernels.width + r);
      kernels.pack(row, count, all.width_of(static_cast<int>(panel)), depth, packed + panel * panel_floats);
    });
    std::int64_t const groups = divide_up(all.count(), group_panels);
    cpu::parallel_for(chosen, groups * divide_up(a.rows, item_features), [&](std::int64_t item) {
      std::int64_t const first_row = item % groups * group_rows, first = item / groups * item_features;
      int const features = static_cast<int>(std::min(item_features, a.rows - first));
      cpu::panel_rows const some{packed + item % groups * group_panels * panel_floats,
                                 static_cast<int>(std::min(group_rows, rows - first_row)), kernels.lanes,
                                 kernels.width};
      alignas(64) float sums[cpu::item_floats];
      cpu::feature_tile<weight_view<float>> tiles[cpu::most_tiles] = {};
      for (int t = 0; t * kernels.features < features; ++t) {
        tiles[t] = {a.row(first + t * kernels.features), a.row_stride, 1,
                    std::min(kernels.features, features - t * kernels.features)};
      }
      cpu::multiply_panels(kernels, tiles, some, depth, sums);
      float products[cpu::most_item_features];
      for (int p = 0; p < some.count(); ++p) {
        int const width = some.width_of(p);
        for (int r = 0; r < some.rows_of(p); ++r) {
          for (int f = 0; f < features; ++f) {
            products[f] = cpu::sums_at(kernels, sums, f / kernels.features, p)[f % kernels.features * width + r];
          }
          use(begin + first_row + p * kernels.width + r, first, features, products);
        }
      }
    });
  }
  return true;
}

namespace detail {

inline double squared_norm(float const* row, std::int64_t count) {
  double sum[4] = {};
  std::int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    for (int l = 0; l < 4; ++l) sum[l] += static_cast<double>(row[i + l]) * row[i + l];
  }
  for (; i < count; ++i) sum[0] += static_cast<double>(row[i]) * row[i];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

}  // namespace detail

/// distances[r][j] = || x[r] - a[j] ||^2 of all rows of two matrices, [rows, depth] and [others, depth], as |x|^2 + |a|^2 - 2 x . a,
/// and 0 where rounding makes that negative. Norms are summed in double, products as `multiply_by_transposed` does, which it also is
/// like in all else.
inline bool squared_distances(view<float const> x, view<float const> a, view<float> distances,
                              cpu_context const& context = {}, keep_going const& watch = {}) {
  if (distances.rows != x.rows || distances.columns != a.rows) {
    fail("compression::squared_distances, distances", std::to_string(x.rows) + " x " + std::to_string(a.rows),
         std::to_string(distances.rows) + " x " + std::to_string(distances.columns));
  }
  std::vector<double> of_x(static_cast<std::size_t>(x.rows)), of_a(static_cast<std::size_t>(a.rows));
  cpu_context const chosen = cpu::resolved(context);
  cpu::parallel_for(chosen, x.rows, [&](std::int64_t r) { of_x[r] = detail::squared_norm(x.row(r), x.columns); });
  cpu::parallel_for(chosen, a.rows, [&](std::int64_t j) { of_a[j] = detail::squared_norm(a.row(j), a.columns); });
  return multiply_by_transposed(
      x, a, context,
      [&](std::int64_t row, std::int64_t first, int count, float const* products) {
        float* const to = distances.row(row) + first;
        for (int i = 0; i < count; ++i) {
          double const distance = of_x[row] + of_a[first + i] - 2.0 * static_cast<double>(products[i]);
          to[i] = distance > 0.0 ? static_cast<float>(distance) : 0.0f;
        }
      },
      watch);
}

}  // namespace switchyard::compression
