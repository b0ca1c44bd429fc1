#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/core/view.hpp>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace switchyard::compression {

namespace detail {

inline void check_keep(double keep) {
  if (keep >= 0.0 && keep <= 1.0) return;
  fail("compression, keep", "a share from 0 to 1", std::to_string(keep));
}

}  // namespace detail

/// How many of `entries` entries are zeroed where the share `keep` of them is kept: round((1 - keep) entries), halves to the even number.
/// 1 - keep is taken to 15 decimals: 0.9 leaves 0.1 and no less, as if the share of zeros had been written.
/// Source: ResMoE's code, which is given the share of zeros, and Python's `round`.
inline std::int64_t pruned_count(double keep, std::int64_t entries) {
  detail::check_keep(keep);
  double const share = std::round((1.0 - keep) * 1e15) / 1e15;
  double const exact = share * static_cast<double>(entries), below = std::floor(exact), rest = exact - below;
  auto const count = static_cast<std::int64_t>(below);
  return rest > 0.5 || (rest == 0.5 && count % 2 != 0) ? count + 1 : count;
}

/// The rank at which two factors of an [rows, columns] matrix have at most the share `keep` of its numbers:
/// floor(keep rows columns / (rows + columns)).
/// Source: as above; 1654 for a quarter of Mixtral's 14336 x 12288.
inline int retained_rank(double keep, std::int64_t rows, std::int64_t columns) {
  detail::check_keep(keep);
  return static_cast<int>(std::floor(keep * static_cast<double>(rows) * static_cast<double>(columns) /
                                     static_cast<double>(rows + columns)));
}

/// Zeroes the `zeroed` entries of least magnitude of a matrix whose rows lie back to back, of equal ones those that stand first. `kept`,
/// unless it is null, gets a 1 for each entry that is kept, even where that is 0, and a 0 for the others.
///
/// Exact, without sorting: magnitudes are counted by the upper and then the lower half of their bits. Entries must be finite.
inline void prune(view<float> change, std::int64_t zeroed, std::uint8_t* kept = nullptr) {
  std::int64_t const entries = change.rows * change.columns;
  if (change.rows > 1 && change.row_stride != change.columns) {
    fail("compression::prune, change", "rows back to back", "rows that are apart");
  }
  if (zeroed < 0 || zeroed > entries) {
    fail("compression::prune, zeroed", "0 to " + std::to_string(entries), std::to_string(zeroed));
  }
  auto const magnitude = [&](std::int64_t i) {
    return __builtin_bit_cast(std::uint32_t, change.data[i]) & 0x7fffffffu;
  };
  // The place where the count of what is smaller reaches `zeroed`.
  std::int64_t below = 0;
  auto const find = [&](std::vector<std::int64_t> const& counts) {
    std::uint32_t at = 0;
    while (at + 1 < counts.size() && below + counts[at] <= zeroed) below += counts[at++];
    return at;
  };
  std::vector<std::int64_t> counts(std::size_t{1} << 16, 0);
  for (std::int64_t i = 0; i < entries; ++i) ++counts[magnitude(i) >> 16];
  std::uint32_t const upper = find(counts);
  counts.assign(counts.size(), 0);
  for (std::int64_t i = 0; i < entries; ++i) {
    std::uint32_t const m = magnitude(i);
    if (m >> 16 == upper) ++counts[m & 0xffffu];
  }
  std::uint32_t const least = upper << 16 | find(counts);
  std::int64_t equal_left = zeroed - below;
  for (std::int64_t i = 0; i < entries; ++i) {
    std::uint32_t const m = magnitude(i);
    bool const drop = m < least || (m == least && equal_left-- > 0);
    if (drop) change.data[i] = 0.0f;
    if (kept != nullptr) kept[i] = drop ? 0 : 1;
  }
}

}  // namespace switchyard::compression
