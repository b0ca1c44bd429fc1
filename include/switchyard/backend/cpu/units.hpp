#pragma once

#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/product.hpp>
#include <switchyard/backend/cpu/tile.hpp>
#include <switchyard/core/view.hpp>

#include <algorithm>
#include <cstdint>

/// The second product of rows that are mostly zeros: see `expert::top_k_units`.
namespace switchyard::cpu {

/// What sums the weights of units, of one instruction set: see rows.inl.
template <class Element>
struct unit_kernels {
  int (*next)(row_among_others const& row, std::int64_t& from, int most, std::int32_t* units, float* values) = nullptr;
  void (*add)(Element const* const* rows, float const* weights, int count, int columns, float* sum) = nullptr;
  void (*put)(float const* sum, int columns, float* to) = nullptr;
};
template <class Element>
unit_kernels<Element> unit_kernels_of(instruction_set set) {
#if defined(__x86_64__)
  if (set >= instruction_set::avx512) {
    return {&avx512::next_units<Element>, &avx512::add_rows<Element>, &avx512::add_in_order<Element>};
  }
  if (set == instruction_set::avx2) {
    return {&avx2::next_units<Element>, &avx2::add_rows<Element>, &avx2::add_in_order<Element>};
  }
#else
  (void)set;
#endif
  return {&portable::next_units<Element>, &portable::add_rows<Element>, &portable::add_in_order<Element>};
}

/// Features of an item of such a product.
inline constexpr int unit_features = 512;

/// results[row][h] = down product of some features h (+ bias), for `count` rows that `row(r)` tells of: the weights of units that are not
/// zero, after each other.
template <class Element, class Row>
void sum_units_out(unit_kernels<Element> const& kernels, int count, Row const& row, weight_view<Element> const& down,
                   bias_view<Element> const& bias, int expert, int first, int features, int hidden, float* results) {
  constexpr int together = 64;
  for (int r = 0; r < count; ++r) {
    row_among_others const inner = row(r);
    float sum[unit_features] = {};
    std::int64_t from = 0;
    while (true) {
      std::int32_t units[together];
      float values[together];
      Element const* rows[together + rows_ahead];
      int const found = kernels.next(inner, from, together, units, values);
      if (found == 0) break;
      for (int i = 0; i < found; ++i) rows[i] = down.at(expert, first, units[i]);
      std::fill(rows + found, rows + found + rows_ahead, rows[found - 1]);
      kernels.add(rows, values, found, features, sum);
    }
    float* const to = results + std::int64_t{r} * hidden + first;
    for (int i = 0; i < features; ++i) to[i] = bias.at(expert, first + i);
    kernels.put(sum, features, to);
  }
}

}  // namespace switchyard::cpu
