#pragma once

#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/masked_change.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

/// Makes `masked_change` of dense changes, on the host. Not part of switchyard.hpp: trained weights go through it once.
namespace switchyard {

/// The arrays of a `masked_change`. Experts are added one after the other.
template <class Element>
struct masked_arrays {
  int rows = 0, columns = 0;
  std::vector<std::uint32_t> masks;
  std::vector<Element> values = std::vector<Element>(masked_change<Element>::padding);  ///< and the padding
  std::vector<std::int64_t> first_values{0};
  std::vector<std::uint32_t> block_starts;

  masked_arrays() = default;
  masked_arrays(int row_count, int column_count) : rows(row_count), columns(column_count) {
    if (rows < 1 || columns < 1) {
      fail("masked_arrays, rows x columns", "at least 1 x 1", std::to_string(rows) + " x " + std::to_string(columns));
    }
  }

  int experts() const { return static_cast<int>(first_values.size()) - 1; }
  std::int64_t value_count() const { return first_values.back(); }
  /// What it takes in memory, padding included.
  std::int64_t bytes() const {
    return static_cast<std::int64_t>(masks.size() * sizeof(std::uint32_t) + values.size() * sizeof(Element) +
                                     first_values.size() * sizeof(std::int64_t) +
                                     block_starts.size() * sizeof(std::uint32_t));
  }
  /// A view of the arrays, which must outlive it and get no expert meanwhile.
  masked_change<Element> view() const {
    return {masks.data(), values.data(), first_values.data(), block_starts.data(), rows, columns, value_count()};
  }

  /// Adds an expert: entry (row, column) of its change stands at `change[row * row_stride + column * column_stride]`, and is kept where
  /// `kept`, by the same strides, is not 0. `kept` may be null: then what is not 0 is kept. A kept value may well be 0, after rounding to
  /// the element.
  ///
  /// Throws where an expert has 2^32 values or more.
  void append(float const* change, std::uint8_t const* kept, std::int64_t row_stride, std::int64_t column_stride) {
    std::int64_t const begin = value_count();
    values.resize(static_cast<std::size_t>(begin));  // the padding makes room
    for (int row = 0; row < rows; ++row) {
      std::uint32_t mask = 0;
      for (int column = 0; column < columns; ++column) {
        if (column % masked_change<Element>::block_columns == 0) {
          std::int64_t const start = static_cast<std::int64_t>(values.size()) - begin;
          if (start >= std::int64_t{1} << 32) fail_many();
          block_starts.push_back(static_cast<std::uint32_t>(start));
        }
        std::int64_t const at = row * row_stride + column * column_stride;
        if (kept != nullptr ? kept[at] != 0 : change[at] != 0.0f) {
          mask |= 1u << column % 32;
          values.push_back(Element(change[at]));
        }
        if (column % 32 == 31 || column + 1 == columns) {
          masks.push_back(mask);
          mask = 0;
        }
      }
    }
    first_values.push_back(static_cast<std::int64_t>(values.size()));
    values.resize(values.size() + masked_change<Element>::padding);
  }

 private:
  static void fail_many() { fail("masked_arrays::append, values of an expert", "less than 2^32", "more"); }
};

/// The changes of all experts, [experts, rows, columns] one after the other, as a masked change; `kept` says which entries are kept, in
/// the same order, or is null: then those that are not 0 are.
template <class Element>
masked_arrays<Element> pack_masked(float const* changes, std::uint8_t const* kept, int experts, int rows, int columns) {
  masked_arrays<Element> result(rows, columns);
  std::int64_t const size = std::int64_t{rows} * columns;
  for (int e = 0; e < experts; ++e) {
    result.append(changes + e * size, kept == nullptr ? nullptr : kept + e * size, columns, 1);
  }
  return result;
}

/// Throws `error` unless the arrays of a change fit each other, so that every product stays inside them: what a program does with arrays
/// that come from a file. `what` is their name in the sentence.
template <class Element>
void check_masked(masked_change<Element> const& change, int experts, char const* what = "masked change") {
  auto const compare = [&](char const* part, char const* of, std::int64_t number, std::int64_t expected,
                           std::int64_t got) {
    if (got == expected) return;
    std::string name = std::string(what).append(", ").append(part);
    if (number >= 0) name.append(" of ").append(of).append(" ").append(std::to_string(number));
    fail(name, std::to_string(expected), std::to_string(got));
  };
  constexpr int block_words = masked_change<Element>::block_columns / 32;
  std::int64_t const words = change.words_of_row(), blocks = change.blocks_of_row();
  std::uint32_t const behind = change.columns % 32 == 0 ? 0 : ~((1u << change.columns % 32) - 1);
  std::int64_t count = 0;  // of all values before
  for (int e = 0; e < experts; ++e) {
    compare("first value", "expert", e, count, change.first_values[e]);
    std::int64_t const begin = count;
    for (int row = 0; row < change.rows; ++row) {
      std::int64_t const line = std::int64_t{e} * change.rows + row;
      for (std::int64_t w = 0; w < words; ++w) {
        std::uint32_t const mask = change.masks[line * words + w];
        if (w % block_words == 0) {
          compare("a block start", "row", line, count - begin, change.block_starts[line * blocks + w / block_words]);
        }
        if (w + 1 == words) compare("bits behind the last column", "row", line, 0, mask & behind);
        count += count_ones(mask);
      }
    }
  }
  compare("end of the last expert", "", -1, count, change.first_values[experts]);
  compare("number of values", "", -1, count, change.value_count);
}

}  // namespace switchyard
