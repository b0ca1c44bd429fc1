#pragma once

#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/compression/progress.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/view.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

namespace switchyard::compression {

namespace detail {

struct two_columns {
  std::int64_t first_column, second_column;  ///< -1: there is none
  double first, second;
};

namespace portable {
#define SWITCHYARD_ASSIGNMENT_TARGET
#define SWITCHYARD_ASSIGNMENT_BYTES 16
#include <switchyard/compression/assignment.inl>
#undef SWITCHYARD_ASSIGNMENT_TARGET
#undef SWITCHYARD_ASSIGNMENT_BYTES
}  // namespace portable

#if defined(__x86_64__)
namespace avx2 {
#define SWITCHYARD_ASSIGNMENT_TARGET __attribute__((target("avx2")))
#define SWITCHYARD_ASSIGNMENT_BYTES 32
#include <switchyard/compression/assignment.inl>
#undef SWITCHYARD_ASSIGNMENT_TARGET
#undef SWITCHYARD_ASSIGNMENT_BYTES
}  // namespace avx2

namespace avx512 {
#define SWITCHYARD_ASSIGNMENT_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2")))
#define SWITCHYARD_ASSIGNMENT_BYTES 64
#include <switchyard/compression/assignment.inl>
#undef SWITCHYARD_ASSIGNMENT_TARGET
#undef SWITCHYARD_ASSIGNMENT_BYTES
}  // namespace avx512
#endif

/// The loops over a row of costs, of one instruction set.
struct row_loops {
  decltype(&portable::keep_least) keep_least;
  decltype(&portable::two_least) two_least;
  decltype(&portable::relax) relax;
};
inline row_loops row_loops_of(instruction_set set) {
#if defined(__x86_64__)
  if (set >= instruction_set::avx512) return {&avx512::keep_least, &avx512::two_least, &avx512::relax};
  if (set == instruction_set::avx2) return {&avx2::keep_least, &avx2::two_least, &avx2::relax};
#else
  (void)set;
#endif
  return {&portable::keep_least, &portable::two_least, &portable::relax};
}

/// An assignment problem while it is solved. Prices of columns never rise; a row that has a column has one of those whose cost less its
/// price is least.
class assignment_problem {
 public:
  assignment_problem(view<float const> costs, std::span<std::int32_t> column_of_row, instruction_set set)
      : costs_(costs),
        count_(costs.rows),
        loops_(row_loops_of(set)),
        price_(static_cast<std::size_t>(count_)),
        row_of_(price_.size(), -1),
        column_of_(column_of_row) {
    for (std::int32_t& column : column_of_) column = -1;
  }

  bool solve(keep_going const& watch) {
    reduce_columns();
    if (watch && !watch(0.0)) return false;
    for (int pass = 0; pass < 2; ++pass) reduce_rows();
    return augment_all(watch);
  }

 private:
  /// Each column takes the row where it costs least, if that is still free. A row that only one column wanted lowers the price of that
  /// column as far as it goes.
  void reduce_columns() {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    std::vector<float> least(price_.size(), infinity);
    std::vector<std::int32_t> at(price_.size(), -1), wanted(price_.size(), 0);
    for (std::int64_t i = 0; i < count_; ++i) {
      loops_.keep_least(costs_.row(i), static_cast<std::int32_t>(i), count_, least.data(), at.data());
    }
    for (std::int64_t j = 0; j < count_; ++j) {
      price_[j] = least[j];
      std::int32_t const row = at[j];
      if (wanted[row]++ == 0) take(row, static_cast<std::int32_t>(j));
    }
    for (std::int32_t i = 0; i < count_; ++i) {
      if (wanted[i] == 0) free_rows_.push_back(i);
      if (wanted[i] != 1 || count_ == 1) continue;
      // Its own column costs it the least, so that the second least is what any other would.
      price_[column_of_[i]] -= loops_.two_least(costs_.row(i), price_.data(), count_).second;
    }
  }

  /// Free rows take their best column from whoever has it, and lower its price to where the second best is as good.
  void reduce_rows() {
    std::vector<std::int32_t> rows;
    rows.swap(free_rows_);
    // Rounding could let rows take columns from each other for a long time, each time a little cheaper.
    std::int64_t steps_left = 4 * count_;
    for (std::size_t next = 0; next < rows.size();) {
      std::int32_t const i = rows[next++];
      if (count_ == 1 || steps_left-- <= 0) {
        free_rows_.push_back(i);
        continue;
      }
      two_columns const two = loops_.two_least(costs_.row(i), price_.data(), count_);
      auto column = static_cast<std::int32_t>(two.first_column);
      double const lowered = price_[column] - (two.second - two.first);
      bool const lowers = lowered < price_[column];
      if (lowers) {
        price_[column] = lowered;
      } else if (row_of_[column] >= 0) {
        column = static_cast<std::int32_t>(two.second_column);
      }
      std::int32_t const other = row_of_[column];
      take(i, column);
      if (other < 0) continue;
      column_of_[other] = -1;
      if (lowers) {
        rows[--next] = other;
      } else {
        free_rows_.push_back(other);
      }
    }
  }

  bool augment_all(keep_going const& watch) {
    distance_.resize(price_.size());
    open_price_.resize(price_.size());
    from_.resize(price_.size());
    for (std::int32_t j = 0; j < count_; ++j) {
      if (row_of_[j] < 0) free_columns_.push_back(j);
    }
    for (std::size_t k = 0; k < free_rows_.size(); ++k) {
      if (watch && !watch(static_cast<double>(k) / static_cast<double>(free_rows_.size()))) return false;
      augment(free_rows_[k]);
    }
    return true;
  }

  /// Finds the shortest path of alternating columns and rows from a free row to a free column, and assigns along it.
  void augment(std::int32_t row) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    for (std::int64_t j = 0; j < count_; ++j) {
      distance_[j] = infinity;
      open_price_[j] = price_[j];
    }
    done_.clear();
    std::int64_t column =
        loops_.relax(costs_.row(row), row, 0.0, open_price_.data(), count_, distance_.data(), from_.data());
    double length = -infinity;
    for (;;) {
      // Among equal ones that one is taken which ends the path; only where the length has not grown can there be many.
      if (distance_[column] == length && row_of_[column] >= 0) column = free_column_at(length, column);
      length = distance_[column];
      if (row_of_[column] < 0) break;
      done_.push_back({static_cast<std::int32_t>(column), length});
      distance_[column] = infinity;
      open_price_[column] = -infinity;
      std::int32_t const i = row_of_[column];
      double const shift = length - (costs_.row(i)[column] - price_[column]);
      column = loops_.relax(costs_.row(i), i, shift, open_price_.data(), count_, distance_.data(), from_.data());
    }
    for (auto const& [j, distance] : done_) price_[j] += distance - length;
    std::size_t at = 0;
    while (free_columns_[at] != column) ++at;
    free_columns_.erase(free_columns_.begin() + static_cast<std::ptrdiff_t>(at));
    for (auto j = static_cast<std::int32_t>(column);;) {
      std::int32_t const i = from_[j], next = column_of_[i];
      take(i, j);
      if (i == row) break;
      j = next;
    }
  }

  std::int64_t free_column_at(double length, std::int64_t otherwise) const {
    for (std::int32_t j : free_columns_) {
      if (distance_[j] == length) return j;
    }
    return otherwise;
  }

  void take(std::int32_t row, std::int32_t column) {
    column_of_[row] = column;
    row_of_[column] = row;
  }

  struct reached {
    std::int32_t column;
    double distance;
  };

  view<float const> costs_;
  std::int64_t count_;
  row_loops loops_;
  std::vector<double> price_, distance_, open_price_;
  std::vector<std::int32_t> row_of_, from_, free_rows_, free_columns_;
  std::vector<reached> done_;
  std::span<std::int32_t> column_of_;
};

}  // namespace detail

/// Gives each row a column of its own so that the sum of their costs is least: the assignment problem, solved exactly. Sums are taken
/// in double; two assignments whose sums differ by less than its rounding count as equal.
///
/// `costs` is [count, count] and finite, of any sign; `column_of_row` has room for `count` numbers. Of several assignments with the
/// least sum the result is always the same one, whatever the instruction set. Memory beside the costs: at most 80 bytes for each row.
/// Time: at most of the order of count^3, on the calling thread. Returns false when `watch` returned false; `column_of_row` is then of no use.
/// Throws `error` for costs that are not square or not finite.
/// Source: Jonker and Volgenant 1987, A Shortest Augmenting Path Algorithm for Dense and Sparse Linear Assignment Problems: reduction
/// of columns, augmenting reduction of rows, then shortest paths as Dijkstra's.
inline bool assign(view<float const> costs, std::span<std::int32_t> column_of_row, keep_going const& watch = {},
                   instruction_set instructions = instruction_set::automatic) {
  auto const text = [](auto number) { return std::to_string(number); };
  if (costs.rows < 1 || costs.rows != costs.columns || costs.rows > std::numeric_limits<std::int32_t>::max()) {
    fail("compression::assign, costs", "as many rows as columns, at least 1",
         text(costs.rows) + " x " + text(costs.columns));
  }
  if (static_cast<std::int64_t>(column_of_row.size()) != costs.rows) {
    fail("compression::assign, column_of_row", text(costs.rows) + " numbers", text(column_of_row.size()));
  }
  if (costs.data == nullptr) fail("compression::assign, costs", "a matrix", "a null pointer");
  for (std::int64_t i = 0; i < costs.rows; ++i) {
    float const* const row = costs.row(i);
    std::uint32_t largest = 0;  // exponent of any cost
    for (std::int64_t j = 0; j < costs.columns; ++j) {
      std::uint32_t const magnitude = __builtin_bit_cast(std::uint32_t, row[j]) & 0x7fffffffu;
      largest = magnitude > largest ? magnitude : largest;
    }
    if (largest >= 0x7f800000u) {
      fail("compression::assign, costs", "finite numbers", "one that is not in row " + text(i));
    }
  }
  instruction_set const set = cpu::resolved({.threads = 1, .instructions = instructions}).instructions;
  return detail::assignment_problem(costs, column_of_row, set).solve(watch);
}

}  // namespace switchyard::compression
