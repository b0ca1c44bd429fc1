#pragma once

#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/host_device.hpp>
#include <switchyard/core/operand.hpp>

#include <cstdint>

namespace switchyard {

/// Ones of a word.
SWITCHYARD_HD inline int count_ones(std::uint32_t word) {
#if defined(__CUDA_ARCH__)
  return __popc(word);
#else
  return __builtin_popcount(word);
#endif
}

/// What is left of a change of every expert's matrix where most entries were pruned: a bit for each entry, and the values of those that
/// have one. With a quarter of the entries kept, 16 bits each, that is 5 bits for an entry, and 1/16 of a bit to find them.
///
///   masks    0...1..0 01....10 ...   word c / 32 of a row, bit c % 32: whether entry c was kept
///   values   v v v v ...             of the bits in the order of experts, rows and columns
///
/// Rows are those of the product (output features), columns its depth, as in `weight_view`. `pack_masked` (core/pack_masked.hpp) writes it.
template <class Element>
struct masked_change {
  static constexpr int granule = 32;
  static constexpr bool sparse = true;
  /// Columns from one entry of `block_starts` to the next.
  static constexpr int block_columns = 512;
  /// Elements behind the last value that belong to the array and are no values: products load whole vectors.
  static constexpr int padding = 32;

  std::uint32_t const* masks = nullptr;  ///< [experts, rows, divide_up(columns, 32)]; bits behind the last column are 0
  Element const* values = nullptr;       ///< [value_count + padding]
  std::int64_t const* first_values = nullptr;  ///< [experts + 1]: where the values of each expert begin
  std::uint32_t const* block_starts =
      nullptr;                   ///< [experts, rows, divide_up(columns, 512)]: where those of a block do in its expert
  int rows = 0, columns = 0;     ///< of a matrix
  std::int64_t value_count = 0;  ///< of all experts

  SWITCHYARD_HD constexpr std::int64_t words_of_row() const { return divide_up(columns, 32); }
  SWITCHYARD_HD constexpr std::int64_t blocks_of_row() const { return divide_up(columns, block_columns); }
  SWITCHYARD_HD constexpr std::uint32_t const* masks_of(int expert, int row) const {
    return masks + (std::int64_t{expert} * rows + row) * words_of_row();
  }
  /// The values of a row from a column on.
  SWITCHYARD_HD Element const* values_from(int expert, int row, int column) const {
    std::int64_t const line = std::int64_t{expert} * rows + row;
    std::uint32_t const* const words = masks + line * words_of_row();
    int const word = column / 32, block = column / block_columns;
    std::int64_t position = first_values[expert] + block_starts[line * blocks_of_row() + block];
    for (int w = block * (block_columns / 32); w < word; ++w) position += count_ones(words[w]);
    if (column % 32 != 0) position += count_ones(words[word] & ((1u << column % 32) - 1));
    return values + position;
  }

  SWITCHYARD_HD void add(int expert, int row, int column, int count, float* to) const {
    std::uint32_t const mask = masks_of(expert, row)[column / 32] >> column % 32;
    Element const* next = values_from(expert, row, column);
    for (int i = 0; i < count; ++i) {
      if ((mask >> i & 1u) != 0) to[i] += static_cast<float>(*next++);
    }
  }
  SWITCHYARD_HD constexpr masked_change from(int expert) const {
    masked_change result = *this;
    result.masks += expert * rows * words_of_row();
    result.first_values += expert;
    result.block_starts += expert * rows * blocks_of_row();
    return result;
  }
  template <class Arrays>
  void name_arrays(Arrays const& arrays, int experts, int all_rows, int all_columns) const {
    std::int64_t const lines = std::int64_t{experts} * all_rows;
    arrays.array("masks", masks, lines * divide_up(all_columns, 32), "[experts, rows, columns / 32] words of bits");
    arrays.array("values", values, value_count + padding, "[values and 32 more]");
    arrays.array("first_values", first_values, std::int64_t{experts} + 1, "[experts + 1] int64");
    arrays.array("block_starts", block_starts, lines * divide_up(all_columns, block_columns),
                 "[experts, rows, columns / 512] uint32");
  }
};

static_assert(delta<masked_change<float>>);

}  // namespace switchyard
