#pragma once

#include <switchyard/core/view.hpp>
#include <switchyard/modularity/functional_experts.hpp>
#include <switchyard/modularity/predictivity.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

/// How much functions have in common, and how much of what units and experts do stays from one checkpoint to the next.
namespace switchyard::modularity {

/// How much the top units of each pair of sub-functions overlap: the number of common ones / `top`, the mean over layers.
///
/// `predictivity` is [layers * sub-functions, units], layer after layer. Returns [sub-functions, sub-functions]. Throws `error` where rows
/// are no multiple of the sub-functions.
/// Source: Zhang et al. 2023, Neuron functional specialisation: `top` is 32 of 3072 units of T5, and 512 of 49152 of Switch.
inline std::vector<double> similarity(view<double const> predictivity, std::int64_t sub_functions, std::int64_t top) {
  detail::check_matrix("similarity, predictivity", predictivity, " (layers * sub-functions x units)");
  if (sub_functions < 1 || predictivity.rows < 1 || predictivity.rows % sub_functions != 0) {
    detail::refuse(
        "similarity, predictivity",
        "the same number of rows, at least 1, for each of " + std::to_string(sub_functions) + " sub-functions",
        std::to_string(predictivity.rows) + " rows");
  }
  if (top < 1) detail::refuse("similarity, top", "at least 1", std::to_string(top));
  std::size_t const functions = static_cast<std::size_t>(sub_functions);
  double const layers = static_cast<double>(predictivity.rows / sub_functions);
  std::vector<double> result(functions * functions);
  std::vector<std::vector<std::int32_t>> best(functions);
  std::vector<std::uint8_t> is_best(static_cast<std::size_t>(predictivity.columns));
  for (std::int64_t first = 0; first < predictivity.rows; first += sub_functions) {
    for (std::size_t f = 0; f < functions; ++f) {
      best[f] = top_units(detail::row_of(predictivity, first + static_cast<std::int64_t>(f)), top);
    }
    for (std::size_t f = 0; f < functions; ++f) {
      std::fill(is_best.begin(), is_best.end(), std::uint8_t{0});
      for (std::int32_t unit : best[f]) is_best[static_cast<std::size_t>(unit)] = 1;
      for (std::size_t g = 0; g < functions; ++g) {
        std::int64_t common = 0;
        for (std::int32_t unit : best[g]) common += is_best[static_cast<std::size_t>(unit)];
        result[f * functions + g] += static_cast<double>(common) / static_cast<double>(top) / layers;
      }
    }
  }
  return result;
}

/// Neighbouring sub-functions.
struct sub_function_group {
  std::int64_t first = 0;
  std::int64_t count = 0;
};

/// Semantic, knowledge and task sub-functions, in this order.
constexpr std::array<sub_function_group, 3> three_groups(std::int64_t semantic, std::int64_t knowledge,
                                                         std::int64_t tasks) {
  return {{{0, semantic}, {semantic, knowledge}, {semantic + knowledge, tasks}}};
}

/// The same as the published figure of similarities has them: the last task is in no group, for its code counts the tasks before the two
/// splits of one of them are parted.
constexpr std::array<sub_function_group, 3> three_groups_as_published(std::int64_t semantic, std::int64_t knowledge,
                                                                      std::int64_t tasks) {
  return three_groups(semantic, knowledge, tasks - 1);
}

/// The mean similarity of the sub-functions of each pair of groups, where those of a group are not compared with themselves.
///
/// `similarity` is [sub-functions, sub-functions], as `similarity` returns it. Returns [groups, groups]. Throws `error` for a group with
/// sub-functions that do not exist, and for one with fewer than two.
/// Source: Zhang et al. 2023, Neuron functional specialisation.
inline std::vector<double> group_similarity(view<double const> similarity, std::span<sub_function_group const> groups) {
  detail::check_matrix("group_similarity, similarity", similarity, " (sub-functions x sub-functions)");
  detail::check_size("group_similarity, similarity", similarity.rows, similarity.columns, " rows, as many as columns");
  for (sub_function_group const& g : groups) {
    if (g.first >= 0 && g.count >= 2 && g.first <= similarity.rows && g.count <= similarity.rows - g.first) continue;
    detail::refuse("group_similarity, groups",
                   "groups of at least 2 of " + std::to_string(similarity.rows) + " sub-functions",
                   std::to_string(g.count) + " from " + std::to_string(g.first) + " on");
  }
  std::vector<double> result;
  for (sub_function_group const& a : groups) {
    for (sub_function_group const& b : groups) {
      double sum = 0.0;
      std::int64_t pairs = 0;
      for (std::int64_t i = a.first; i < a.first + a.count; ++i) {
        for (std::int64_t j = b.first; j < b.first + b.count; ++j) {
          if (i == j) continue;
          sum += similarity.row(i)[j];
          ++pairs;
        }
      }
      result.push_back(sum / static_cast<double>(pairs));
    }
  }
  return result;
}

/// The ranks of some numbers, from 1; equal ones have the mean of theirs.
inline std::vector<double> average_ranks(std::span<double const> values) {
  detail::check_numbers("average_ranks, values", values);
  std::vector<std::size_t> order(values.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return values[a] < values[b]; });
  std::vector<double> ranks(values.size());
  for (std::size_t begin = 0, end = 0; begin < order.size(); begin = end) {
    while (end < order.size() && values[order[end]] == values[order[begin]]) ++end;
    for (std::size_t i = begin; i < end; ++i) ranks[order[i]] = (static_cast<double>(begin + end) + 1.0) / 2.0;
  }
  return ranks;
}

/// Spearman's rank correlation, equal values having average ranks: Pearson's correlation of the ranks. NaN where one of the two is the
/// same everywhere.
inline double rank_correlation(std::span<double const> a, std::span<double const> b) {
  detail::check_size("rank_correlation, b", b, static_cast<std::int64_t>(a.size()), " numbers, as many as a");
  std::vector<double> const rank_a = average_ranks(a), rank_b = average_ranks(b);
  double const mean = (static_cast<double>(a.size()) + 1.0) / 2.0;
  double product = 0.0, square_a = 0.0, square_b = 0.0;
  for (std::size_t i = 0; i < rank_a.size(); ++i) {
    product += (rank_a[i] - mean) * (rank_b[i] - mean);
    square_a += (rank_a[i] - mean) * (rank_a[i] - mean);
    square_b += (rank_b[i] - mean) * (rank_b[i] - mean);
  }
  if (square_a == 0.0 || square_b == 0.0) return std::numeric_limits<double>::quiet_NaN();
  return product / (std::sqrt(square_a) * std::sqrt(square_b));
}

/// How stable units, or experts, are in training: the rank correlation of each checkpoint with the next, the mean over sub-functions.
///
/// `predictivity` is [checkpoints * sub-functions, units], checkpoint after checkpoint; for experts the columns are those of
/// `expert_predictivity`. Returns [checkpoints - 1]. Throws `error` where rows are no multiple of the sub-functions.
/// Source: Zhang et al. 2023, Stabilisation, which takes all layers for units and, of Switch, the sparse ones for experts.
inline std::vector<double> stability(view<double const> predictivity, std::int64_t sub_functions) {
  detail::check_matrix("stability, predictivity", predictivity, " (checkpoints * sub-functions x units)");
  if (sub_functions < 1 || predictivity.rows % sub_functions != 0) {
    detail::refuse("stability, predictivity",
                   "the same number of rows for each of " + std::to_string(sub_functions) + " sub-functions",
                   std::to_string(predictivity.rows) + " rows");
  }
  std::vector<double> result;
  for (std::int64_t first = 0; first + sub_functions < predictivity.rows; first += sub_functions) {
    double sum = 0.0;
    for (std::int64_t f = first; f < first + sub_functions; ++f) {
      sum += rank_correlation(detail::row_of(predictivity, f), detail::row_of(predictivity, f + sub_functions));
    }
    result.push_back(sum / static_cast<double>(sub_functions));
  }
  return result;
}

}  // namespace switchyard::modularity
