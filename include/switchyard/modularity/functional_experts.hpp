#pragma once

#include <switchyard/core/counter_random.hpp>
#include <switchyard/core/view.hpp>
#include <switchyard/modularity/predictivity.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

/// Which experts have more of the most predictive units than chance gives them.
namespace switchyard::modularity {

/// The units of a layer, and the expert that each belongs to.
struct unit_experts {
  std::span<std::int32_t const> expert_of_unit;  ///< [units], from 0 to experts - 1
  int experts = 0;
};

/// How functional experts are tested. The defaults are published.
struct functional_test {
  std::int64_t top = 0;  ///< units of a sub-function that count; 0: a hundredth of all, rounded down
  double alpha = 0.001;  ///< the probability that chance may have of more units, above 0 and less than 1
};

/// What a test found.
struct functional_experts {
  std::vector<std::int64_t> counts;         ///< [experts], of top units
  std::vector<std::int64_t> thresholds;     ///< [experts], which counts have to be above
  std::vector<std::uint8_t> is_functional;  ///< [experts]
  double proportion = 0.0;                  ///< of functional experts
  double degree = 0.0;  ///< mean over functional experts of count / (all counts / experts); 0 without any
};

/// Means over random partitions.
struct partition_baseline {
  double proportion = 0.0;
  double degree = 0.0;
};

namespace detail {

inline void check_alpha(char const* what, double alpha) {
  if (!(alpha > 0.0 && alpha < 1.0)) {
    refuse(std::string(what) + ", alpha", "a number above 0 and less than 1", std::to_string(alpha));
  }
}

/// The smallest t with P(X > t) <= alpha, for a distribution on `least` to `most` with one maximum, by the ratios of neighbouring
/// probabilities: `ratio(k)` is P(X = k + 1) / P(X = k). Sums are relative to the maximum, so that nothing overflows, and what
/// vanishes in them is less than 1e-300 of it.
template <class Ratio>
std::int64_t tail_threshold(std::int64_t least, std::int64_t most, double alpha, Ratio const& ratio) {
  std::int64_t mode = least;  // ratios fall
  for (std::int64_t above = most; mode < above;) {
    std::int64_t const middle = mode + (above - mode) / 2;
    if (ratio(middle) > 1.0) {
      mode = middle + 1;
    } else {
      above = middle;
    }
  }
  std::vector<double> weight(static_cast<std::size_t>(most - least + 1));
  auto const at = [&](std::int64_t k) -> double& { return weight[static_cast<std::size_t>(k - least)]; };
  at(mode) = 1.0;
  for (std::int64_t k = mode; k < most; ++k) at(k + 1) = at(k) * ratio(k);
  for (std::int64_t k = mode; k > least; --k) at(k - 1) = at(k) / ratio(k - 1);
  double below = 0.0, tail = 0.0;  // the smallest first
  for (std::int64_t k = least; k < mode; ++k) below += at(k);
  for (std::int64_t k = most; k >= mode; --k) tail += at(k);
  // Rounding is far below this, and may not decide where the tail is alpha itself.
  double const limit = alpha * (below + tail) * (1.0 + 1e-10);
  tail = 0.0;
  std::int64_t t = most;
  while (t > least && (tail += at(t)) <= limit) --t;
  return t;
}

/// Binomial, where a draw is a success with the probability successes / population.
inline std::int64_t binomial_threshold_of(std::int64_t draws, std::int64_t successes, std::int64_t population,
                                          double alpha) {
  if (successes == population) return draws;
  if (successes == 0) return 0;
  double const odds = static_cast<double>(successes) / static_cast<double>(population - successes);
  return tail_threshold(0, draws, alpha, [&](std::int64_t k) {
    return static_cast<double>(draws - k) / static_cast<double>(k + 1) * odds;
  });
}

}  // namespace detail

/// The smallest integer t with P(X > t) <= alpha, where X is how many of `draws` units without replacement belong to an expert of
/// `size` units, of `units` in all. Exact but for rounding, which does not decide: a tail within 1e-10 of alpha counts as alpha.
/// Throws `error` unless 0 <= size <= units, 0 <= draws <= units and 0 < alpha < 1.
/// Source: Zhang et al. 2023, for a sub-function.
inline std::int64_t hypergeometric_threshold(std::int64_t units, std::int64_t size, std::int64_t draws,
                                             double alpha = 0.001) {
  auto const check = [&](char const* name, std::int64_t value) {
    if (value >= 0 && value <= units) return;
    detail::refuse(std::string("hypergeometric_threshold, ") + name, "0 to " + std::to_string(units),
                   std::to_string(value));
  };
  check("units", units);
  check("size", size);
  check("draws", draws);
  detail::check_alpha("hypergeometric_threshold", alpha);
  std::int64_t const others = units - size;
  return detail::tail_threshold(std::max<std::int64_t>(0, draws - others), std::min(size, draws), alpha,
                                [&](std::int64_t k) {
                                  return static_cast<double>(size - k) / static_cast<double>(k + 1) *
                                         (static_cast<double>(draws - k) / static_cast<double>(others - draws + k + 1));
                                });
}

/// The same where each of `draws` units belongs to one of `experts` by chance: X is binomial with p = 1 / experts.
/// Throws `error` for less than 0 draws or 1 expert.
/// Source: Zhang et al. 2023, for a function, whose sub-functions may draw the same units.
inline std::int64_t binomial_threshold(std::int64_t draws, std::int64_t experts, double alpha = 0.001) {
  if (draws < 0) detail::refuse("binomial_threshold, draws", "at least 0", std::to_string(draws));
  if (experts < 1) detail::refuse("binomial_threshold, experts", "at least 1", std::to_string(experts));
  detail::check_alpha("binomial_threshold", alpha);
  return detail::binomial_threshold_of(draws, 1, experts, alpha);
}

/// A random order of the numbers from 0 to count - 1: for i from count - 1 down to 1, entries i and floor(u (i + 1)) change places, where
/// u is number first + i of those with 64 bits, two in each block of `numbers`.
/// Throws `error` for a count below 0 or above 2^32.
/// Source: Fisher and Yates, as Durstenfeld 1964, Algorithm 235, has it.
inline std::vector<std::int64_t> random_permutation(std::int64_t count, counter_random numbers,
                                                    std::uint64_t first = 0) {
  if (count < 0 || count > std::int64_t{1} << 32) {
    detail::refuse("random_permutation, count", "0 to 2^32", std::to_string(count));
  }
  std::vector<std::int64_t> order(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int64_t>(i);
  philox_block block{};
  std::uint64_t drawn = 0;
  bool has_block = false;
  for (std::uint64_t i = order.size(); i-- > 1;) {
    std::uint64_t const number = first + i, bound = i + 1;
    if (!has_block || number / 2 != drawn) block = numbers.block(drawn = number / 2);
    has_block = true;
    std::uint64_t const high = block.word[number % 2 * 2], low = block.word[number % 2 * 2 + 1];
    std::uint64_t const other = bound > 0xffffffffu ? high : (high * bound + (low * bound >> 32)) >> 32;
    std::swap(order[i], order[other]);
  }
  return order;
}

namespace detail {

/// The sizes of the experts, checked.
inline std::vector<std::int64_t> sizes_of(char const* what, unit_experts const& of, std::int64_t units) {
  std::string const name = std::string(what) + ", expert_of_unit";
  check_size(name.c_str(), of.expert_of_unit, units, " numbers, one for each unit");
  if (of.experts < 1) refuse(std::string(what) + ", experts", "at least 1", std::to_string(of.experts));
  std::vector<std::int64_t> sizes(static_cast<std::size_t>(of.experts));
  for (std::int32_t e : of.expert_of_unit) {
    if (e < 0 || e >= of.experts) {
      refuse(name, "numbers from 0 to " + std::to_string(of.experts - 1), std::to_string(e));
    }
    ++sizes[static_cast<std::size_t>(e)];
  }
  return sizes;
}

inline std::int64_t top_of(char const* what, functional_test const& test, std::int64_t units) {
  check_alpha(what, test.alpha);
  std::int64_t const top = test.top != 0 ? test.top : static_cast<std::int64_t>(0.01 * static_cast<double>(units));
  if (top >= 1 && top <= units) return top;
  if (test.top == 0) refuse(what, "at least 100 units, or the number of top units", std::to_string(units) + " units");
  refuse(std::string(what) + ", top", "1 to " + std::to_string(units), std::to_string(test.top));
}

/// The top units of some sub-functions, one list after the other, and the thresholds of all experts.
struct test_of_units {
  std::vector<std::int32_t> top;
  std::vector<std::int64_t> thresholds;

  functional_experts count(std::span<std::int32_t const> expert_of_unit) const {
    functional_experts result{.counts = std::vector<std::int64_t>(thresholds.size()),
                              .thresholds = thresholds,
                              .is_functional = std::vector<std::uint8_t>(thresholds.size())};
    for (std::int32_t unit : top) {
      ++result.counts[static_cast<std::size_t>(expert_of_unit[static_cast<std::size_t>(unit)])];
    }
    double functional = 0.0, degrees = 0.0, experts = static_cast<double>(thresholds.size());
    for (std::size_t e = 0; e < thresholds.size(); ++e) {
      if (result.counts[e] <= thresholds[e]) continue;
      result.is_functional[e] = 1;
      functional += 1.0;
      degrees += static_cast<double>(result.counts[e]) / (static_cast<double>(top.size()) / experts);
    }
    result.proportion = functional / experts;
    result.degree = functional > 0.0 ? degrees / functional : 0.0;
    return result;
  }

  partition_baseline baseline(std::span<std::int32_t const> expert_of_unit, counter_random numbers,
                              int shuffles) const {
    if (shuffles < 1) refuse("random_partitions, shuffles", "at least 1", std::to_string(shuffles));
    partition_baseline result;
    std::vector<std::int32_t> shuffled(expert_of_unit.size());
    for (int s = 0; s < shuffles; ++s) {
      auto const order = random_permutation(static_cast<std::int64_t>(shuffled.size()), numbers,
                                            static_cast<std::uint64_t>(s) * shuffled.size());
      for (std::size_t i = 0; i < shuffled.size(); ++i) {
        shuffled[i] = expert_of_unit[static_cast<std::size_t>(order[i])];
      }
      functional_experts const found = count(shuffled);
      result.proportion += found.proportion / shuffles;
      result.degree += found.degree / shuffles;
    }
    return result;
  }
};

inline test_of_units test_of_sub_function(char const* what, std::span<double const> predictivity,
                                          unit_experts const& of, functional_test const& test) {
  std::int64_t const units = static_cast<std::int64_t>(predictivity.size());
  std::vector<std::int64_t> const sizes = sizes_of(what, of, units);
  std::int64_t const top = top_of(what, test, units);
  test_of_units result{.top = top_units(predictivity, top), .thresholds = {}};
  for (std::size_t e = 0; e < sizes.size(); ++e) {
    bool const is_known = e > 0 && sizes[e] == sizes[e - 1];
    result.thresholds.push_back(is_known ? result.thresholds.back()
                                         : hypergeometric_threshold(units, sizes[e], top, test.alpha));
  }
  return result;
}

inline test_of_units test_of_function(char const* what, view<double const> predictivity, unit_experts const& of,
                                      functional_test const& test) {
  check_matrix(what, predictivity, " (sub-functions x units)");
  std::int64_t const units = predictivity.columns;
  std::vector<std::int64_t> const sizes = sizes_of(what, of, units);
  std::int64_t const top = top_of(what, test, units);
  test_of_units result;
  for (std::int64_t f = 0; f < predictivity.rows; ++f) {
    std::vector<std::int32_t> const of_row = top_units(row_of(predictivity, f), top);
    result.top.insert(result.top.end(), of_row.begin(), of_row.end());
  }
  for (std::size_t e = 0; e < sizes.size(); ++e) {
    bool const is_known = e > 0 && sizes[e] == sizes[e - 1];
    result.thresholds.push_back(is_known ? result.thresholds.back()
                                         : binomial_threshold_of(top * predictivity.rows, sizes[e], units, test.alpha));
  }
  return result;
}

}  // namespace detail

/// Functional experts of a sub-function, by the predictivity of all units for it, [units]: those that have more of the top units than
/// the hypergeometric distribution gives an expert of that size by chance. Throws `error` where fewer than 100 units leave no top
/// hundredth and `test.top` says nothing.
/// Source: Zhang et al. 2023, Functional experts.
inline functional_experts functional_experts_of(std::span<double const> predictivity, unit_experts const& of,
                                                functional_test const& test = {}) {
  return detail::test_of_sub_function("functional_experts_of", predictivity, of, test).count(of.expert_of_unit);
}

/// Functional experts of a function, by the predictivity of all units for its sub-functions, [sub-functions, units]: the top units of all
/// of them count together, and a unit as often as it is one, so that chance is binomial. Its p is the expert's share of the units,
/// 1 / experts where all have one size, as is published.
inline functional_experts functional_experts_of(view<double const> predictivity, unit_experts const& of,
                                                functional_test const& test = {}) {
  return detail::test_of_function("functional_experts_of", predictivity, of, test).count(of.expert_of_unit);
}

/// The same test of random partitions with experts of the same sizes, the mean of `shuffles`. Partition s gives unit i the expert of the
/// unit that stands at i in `random_permutation(units, numbers, s * units)`.
/// Source: Zhang et al. 2023 (200 partitions).
inline partition_baseline random_partitions(std::span<double const> predictivity, unit_experts const& of,
                                            counter_random numbers, int shuffles = 200,
                                            functional_test const& test = {}) {
  return detail::test_of_sub_function("random_partitions", predictivity, of, test)
      .baseline(of.expert_of_unit, numbers, shuffles);
}
inline partition_baseline random_partitions(view<double const> predictivity, unit_experts const& of,
                                            counter_random numbers, int shuffles = 200,
                                            functional_test const& test = {}) {
  return detail::test_of_function("random_partitions", predictivity, of, test)
      .baseline(of.expert_of_unit, numbers, shuffles);
}

/// The mean over an expert's units, for each sub-function: `predictivity` is [sub-functions, units]. Returns [sub-functions, experts]; an
/// expert without units is refused.
/// Source: Zhang et al. 2023, Stabilisation.
inline std::vector<double> expert_predictivity(view<double const> predictivity, unit_experts const& of) {
  detail::check_matrix("expert_predictivity, predictivity", predictivity, " (sub-functions x units)");
  std::vector<std::int64_t> const sizes = detail::sizes_of("expert_predictivity", of, predictivity.columns);
  for (std::int64_t size : sizes) {
    if (size == 0)
      detail::refuse("expert_predictivity, expert_of_unit", "units of every expert", "an expert without any");
  }
  std::vector<double> result(static_cast<std::size_t>(predictivity.rows) * sizes.size());
  for (std::int64_t f = 0; f < predictivity.rows; ++f) {
    double* const means = result.data() + static_cast<std::size_t>(f) * sizes.size();
    auto const row = detail::row_of(predictivity, f);
    for (std::size_t i = 0; i < row.size(); ++i) means[of.expert_of_unit[i]] += row[i];
    for (std::size_t e = 0; e < sizes.size(); ++e) means[e] /= static_cast<double>(sizes[e]);
  }
  return result;
}

}  // namespace switchyard::modularity
