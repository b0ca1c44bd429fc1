#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/core/view.hpp>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace switchyard::compression {

/// The routed experts of one layer. A hidden unit of one is a row of its design matrix [intermediate, columns()]: everything that
/// belongs to that unit, so that an expert whose rows change places computes the same.
///
/// Columns stand in this order: gate [hidden] where the experts are gated, up [hidden], the unit's column of down [hidden], and with
/// biases that of the gate, where there is one, and that of up. A bias of the output belongs to no unit.
/// Source: ResMoE's design matrix; the columns of biases are ours.
struct expert_sizes {
  int experts = 0, hidden = 0, intermediate = 0;
  bool gated = true;
  bool biased = false;  ///< units have biases

  constexpr int columns() const { return hidden * (gated ? 3 : 2) + (biased ? (gated ? 2 : 1) : 0); }
  constexpr int gate_column() const { return 0; }
  constexpr int up_column() const { return gated ? hidden : 0; }
  constexpr int down_column() const { return up_column() + hidden; }
  constexpr int bias_column() const { return down_column() + hidden; }
  /// Numbers of one expert.
  constexpr std::int64_t size() const { return std::int64_t{intermediate} * columns(); }

  friend constexpr bool operator==(expert_sizes const&, expert_sizes const&) = default;
};

/// Where one expert's weights are: gate and up are [intermediate, hidden], down is [hidden, intermediate], biases [intermediate]. What
/// the experts do not have is null.
template <class T>
struct expert_arrays {
  T *gate = nullptr, *up = nullptr, *down = nullptr, *gate_bias = nullptr, *up_bias = nullptr;
};

/// Writes the design matrix of an expert, rows [intermediate, columns()]: `gather_units`, mostly. It is called several times for each
/// expert, and gives the same numbers each time.
using expert_reader = std::function<void(int expert, view<float> rows)>;

namespace detail {

inline void check_sizes(expert_sizes const& sizes) {
  constexpr int widest = 1 << 29;  // rows of units are counted in int
  if (sizes.experts < 1 || sizes.hidden < 1 || sizes.hidden > widest || sizes.intermediate < 1) {
    fail("compression::expert_sizes", "at least 1 expert, and widths of at least 1 (hidden at most 2^29)",
         std::to_string(sizes.experts) + " experts of " + std::to_string(sizes.hidden) + " x " +
             std::to_string(sizes.intermediate));
  }
}

inline void check_rows(char const* what, expert_sizes const& sizes, std::int64_t rows, std::int64_t columns) {
  if (rows == sizes.intermediate && columns == sizes.columns()) return;
  fail(std::string("compression::") + what + ", rows",
       std::to_string(sizes.intermediate) + " x " + std::to_string(sizes.columns()) + " (intermediate x columns)",
       std::to_string(rows) + " x " + std::to_string(columns));
}

/// Calls `move(unit, feature)` for all units and features in small squares, for one of the two sides lies the other way round.
template <class Move>
void for_each_square(std::int64_t units, std::int64_t features, Move const& move) {
  constexpr std::int64_t side = 32;
  for (std::int64_t unit = 0; unit < units; unit += side) {
    for (std::int64_t feature = 0; feature < features; feature += side) {
      for (std::int64_t u = unit; u < std::min(unit + side, units); ++u) {
        for (std::int64_t f = feature; f < std::min(feature + side, features); ++f) move(u, f);
      }
    }
  }
}

}  // namespace detail

/// rows = the design matrix of an expert. Biases that are null are 0. Throws `error` for `rows` of another size.
template <class T>
void gather_units(expert_sizes const& sizes, expert_arrays<T const> const& from, view<float> rows) {
  detail::check_sizes(sizes);
  detail::check_rows("gather_units", sizes, rows.rows, rows.columns);
  std::int64_t const hidden = sizes.hidden, units = sizes.intermediate;
  for (std::int64_t u = 0; u < units; ++u) {
    float* const row = rows.row(u);
    for (std::int64_t f = 0; sizes.gated && f < hidden; ++f) row[f] = static_cast<float>(from.gate[u * hidden + f]);
    for (std::int64_t f = 0; f < hidden; ++f) row[sizes.up_column() + f] = static_cast<float>(from.up[u * hidden + f]);
    if (!sizes.biased) continue;
    float* bias = row + sizes.bias_column();
    if (sizes.gated) *bias++ = from.gate_bias == nullptr ? 0.0f : static_cast<float>(from.gate_bias[u]);
    *bias = from.up_bias == nullptr ? 0.0f : static_cast<float>(from.up_bias[u]);
  }
  detail::for_each_square(units, hidden, [&](std::int64_t u, std::int64_t f) {
    rows.row(u)[sizes.down_column() + f] = static_cast<float>(from.down[f * units + u]);
  });
}

/// The expert whose design matrix `rows` is, rounded to the elements of `to`; arrays that are null are left out.
template <class T>
void scatter_units(expert_sizes const& sizes, view<float const> rows, expert_arrays<T> const& to) {
  detail::check_sizes(sizes);
  detail::check_rows("scatter_units", sizes, rows.rows, rows.columns);
  std::int64_t const hidden = sizes.hidden, units = sizes.intermediate;
  for (std::int64_t u = 0; u < units; ++u) {
    float const* const row = rows.row(u);
    for (std::int64_t f = 0; to.gate != nullptr && f < hidden; ++f) to.gate[u * hidden + f] = T(row[f]);
    for (std::int64_t f = 0; to.up != nullptr && f < hidden; ++f) {
      to.up[u * hidden + f] = T(row[sizes.up_column() + f]);
    }
    if (to.gate_bias != nullptr) to.gate_bias[u] = T(row[sizes.bias_column()]);
    if (to.up_bias != nullptr) to.up_bias[u] = T(row[sizes.bias_column() + (sizes.gated ? 1 : 0)]);
  }
  if (to.down == nullptr) return;
  detail::for_each_square(units, hidden, [&](std::int64_t u, std::int64_t f) {
    to.down[f * units + u] = T(rows.row(u)[sizes.down_column() + f]);
  });
}

/// A matrix of floats with its memory.
class matrix {
 public:
  matrix() = default;
  matrix(std::int64_t rows, std::int64_t columns)
      : rows_(rows), columns_(columns), values_(static_cast<std::size_t>(rows * columns)) {}

  operator view<float>() { return {values_.data(), rows_, columns_}; }
  operator view<float const>() const { return {values_.data(), rows_, columns_}; }
  float* row(std::int64_t index) { return values_.data() + index * columns_; }
  float const* row(std::int64_t index) const { return values_.data() + index * columns_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t columns() const { return columns_; }
  std::vector<float>& values() { return values_; }
  std::vector<float> const& values() const { return values_; }

 private:
  std::int64_t rows_ = 0, columns_ = 0;
  std::vector<float> values_;
};

}  // namespace switchyard::compression
