#pragma once

#include <switchyard/core/counter_random.hpp>
#include <switchyard/core/view.hpp>
#include <switchyard/modularity/functional_experts.hpp>
#include <switchyard/modularity/predictivity.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

/// What a model loses when some units say something else: masks of units, [units], 1 where one is perturbed, and the perturbation.
namespace switchyard::modularity {

/// The share of the units that a mask of P groups of 32 units has, in T5-base with 3072 units: P * 32 / 3072.
/// Source: Zhang et al. 2023, Perturbation; P is 2, 6, 10 and 12 there.
constexpr double share_of_groups(int groups) { return groups * 32 / 3072.0; }

/// The q-quantile of some numbers, with linear interpolation between the two at q (count - 1) in their order.
/// Throws `error` where there is no number, for a NaN, and for a q that is not between 0 and 1.
inline double quantile(std::span<double const> values, double q) {
  if (values.empty()) detail::refuse("quantile, values", "at least 1 number", "none");
  if (!(q >= 0.0 && q <= 1.0)) detail::refuse("quantile, q", "a number from 0 to 1", std::to_string(q));
  detail::check_numbers("quantile, values", values);
  std::vector<double> sorted(values.begin(), values.end());
  double const place = q * static_cast<double>(values.size() - 1);
  auto const at = std::min(static_cast<std::size_t>(place), values.size() - 1);
  auto const lower = sorted.begin() + static_cast<std::ptrdiff_t>(at);
  std::nth_element(sorted.begin(), lower, sorted.end());
  double const fraction = place - static_cast<double>(at);
  if (fraction == 0.0) return *lower;
  double const next = *std::min_element(lower + 1, sorted.end());
  return next == *lower ? next : *lower + (next - *lower) * fraction;
}

/// A mask of the units whose value is above the (1 - share)-quantile. Equal is not above, so that it may have a few units less than
/// that share.
/// Source: Zhang et al. 2023, where the values are the predictivity for a task (see `mask_of_average` and `mask_of_experts`).
inline std::vector<std::uint8_t> mask_of_best(std::span<double const> values, double share) {
  double const limit = quantile(values, 1.0 - share);
  std::vector<std::uint8_t> mask;
  mask.reserve(values.size());
  for (double v : values) mask.push_back(v > limit ? 1 : 0);
  return mask;
}

/// The same by the sum of all rows of `predictivity`, [sub-functions, units].
inline std::vector<std::uint8_t> mask_of_average(view<double const> predictivity, double share) {
  detail::check_matrix("mask_of_average, predictivity", predictivity, " (sub-functions x units)");
  std::vector<double> sum(static_cast<std::size_t>(predictivity.columns));
  for (std::int64_t f = 0; f < predictivity.rows; ++f) {
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += predictivity.row(f)[i];
  }
  return mask_of_best(sum, share);
}

/// A mask of all units of the experts whose score, [experts], is above the (1 - share)-quantile of the experts' scores.
/// Source: Zhang et al. 2023; the mean predictivity of an expert's units may be its score (`expert_predictivity`).
inline std::vector<std::uint8_t> mask_of_experts(std::span<double const> expert_score, unit_experts const& of,
                                                 double share) {
  detail::check_size("mask_of_experts, expert_score", expert_score, of.experts, " numbers, one for each expert");
  detail::sizes_of("mask_of_experts", of, static_cast<std::int64_t>(of.expert_of_unit.size()));
  std::vector<std::uint8_t> const experts = mask_of_best(expert_score, share);
  std::vector<std::uint8_t> mask;
  mask.reserve(of.expert_of_unit.size());
  for (std::int32_t e : of.expert_of_unit) mask.push_back(experts[static_cast<std::size_t>(e)]);
  return mask;
}

/// The mask in a random order, of `random_permutation(units, numbers)`: as many units, whichever they are.
inline std::vector<std::uint8_t> random_mask(std::span<std::uint8_t const> mask, counter_random numbers) {
  std::vector<std::uint8_t> result;
  result.reserve(mask.size());
  for (std::int64_t i : random_permutation(static_cast<std::int64_t>(mask.size()), numbers)) {
    result.push_back(mask[static_cast<std::size_t>(i)]);
  }
  return result;
}

namespace detail {

/// The numbers of masked activations in `activations`, [positions of the whole batch, units]: position * units + unit, rising.
inline std::vector<std::int64_t> masked_places(view<float const> activations, std::span<std::uint8_t const> mask) {
  detail::check_matrix("perturb, activations", activations, " (positions x units)");
  detail::check_size("perturb, mask", mask, activations.columns, " numbers, one for each unit");
  std::vector<std::int64_t> places;
  for (std::int64_t position = 0; position < activations.rows; ++position) {
    for (std::size_t unit = 0; unit < mask.size(); ++unit) {
      if (mask[unit] != 0) places.push_back(position * activations.columns + static_cast<std::int64_t>(unit));
    }
  }
  return places;
}

}  // namespace detail

/// Shuffles the activations of masked units across the batch, its positions and the units together, and multiplies them by `factor`:
/// of the masked ones, in the order of positions and then units, number i becomes factor times number order[i]. The others stay.
///
/// `activations` is [positions of the whole batch, units], after the activation function. Throws `error` unless `order` has each number
/// from 0 to positions * masked units - 1 once.
/// Source: Zhang et al. 2023, Perturbation.
inline void perturb(view<float> activations, std::span<std::uint8_t const> mask, std::span<std::int64_t const> order,
                    float factor = 4.0f) {
  std::vector<std::int64_t> const places = detail::masked_places(activations, mask);
  std::int64_t const count = static_cast<std::int64_t>(places.size());
  detail::check_size("perturb, order", order, count, " numbers, one for each masked unit at each position");
  std::vector<float> values;
  values.reserve(places.size());
  auto const at = [&](std::int64_t place) -> float& {
    return activations.row(place / activations.columns)[place % activations.columns];
  };
  for (std::int64_t place : places) values.push_back(at(place));
  std::vector<bool> is_used(places.size());
  for (std::int64_t i : order) {
    if (i < 0 || i >= count || is_used[static_cast<std::size_t>(i)]) {
      detail::refuse("perturb, order", "each number from 0 to " + std::to_string(count - 1) + " once",
                     std::to_string(i));
    }
    is_used[static_cast<std::size_t>(i)] = true;
  }
  for (std::size_t i = 0; i < places.size(); ++i) at(places[i]) = factor * values[static_cast<std::size_t>(order[i])];
}

/// The same in the order of `random_permutation(positions * masked units, numbers)`: take a stream for each call.
inline void perturb(view<float> activations, std::span<std::uint8_t const> mask, counter_random numbers,
                    float factor = 4.0f) {
  std::int64_t const masked = std::count_if(mask.begin(), mask.end(), [](std::uint8_t m) { return m != 0; });
  perturb(activations, mask, random_permutation(std::max<std::int64_t>(activations.rows, 0) * masked, numbers), factor);
}

}  // namespace switchyard::modularity
