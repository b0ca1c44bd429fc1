#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/core/view.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

/// How well a unit tells whether a sub-function is needed.
namespace switchyard::modularity {

namespace detail {

[[noreturn]] inline void refuse(std::string const& what, std::string const& expected, std::string const& got) {
  fail("modularity::" + what, expected, got);
}

inline void check_size(char const* what, std::int64_t got, std::int64_t expected, char const* of) {
  if (got != expected) refuse(what, std::to_string(expected) + of, std::to_string(got));
}
template <class T>
void check_size(char const* what, std::span<T> got, std::int64_t expected, char const* of) {
  check_size(what, static_cast<std::int64_t>(got.size()), expected, of);
}

/// A matrix with at least one column.
template <class T>
void check_matrix(char const* what, view<T> const& m, char const* of) {
  if (m.rows < 0 || m.columns < 1) {
    refuse(what, std::string("at least 0 x 1") + of, std::to_string(m.rows) + " x " + std::to_string(m.columns));
  }
  if (m.rows > 1 && m.row_stride < m.columns) {
    refuse(std::string(what) + ", row stride", "at least " + std::to_string(m.columns), std::to_string(m.row_stride));
  }
  if (m.rows > 0 && m.data == nullptr) refuse(what, "a matrix", "a null pointer");
}

template <class T>
std::span<T> row_of(view<T> const& m, std::int64_t row) {
  return {m.row(row), static_cast<std::size_t>(m.columns)};
}

inline void check_numbers(char const* what, std::span<double const> values) {
  for (double v : values) {
    if (std::isnan(v)) refuse(what, "numbers", "a NaN");
  }
}

inline void check_labels(char const* what, std::span<std::int32_t const> labels) {
  for (std::int32_t label : labels) {
    if (label < -1 || label > 1) {
      refuse(what, "1 or 0 for each sample, or -1 where it is no part of the sub-function", std::to_string(label));
    }
  }
}

/// A sample and what it is sorted by: 32 bits that fall as activations rise, and the sample's number.
inline std::uint64_t sort_key(char const* what, float activation, std::int64_t sample) {
  if (std::isnan(activation)) refuse(what, "numbers", "a NaN for sample " + std::to_string(sample));
  std::uint32_t const bits = std::bit_cast<std::uint32_t>(activation + 0.0f);  // one zero
  std::uint32_t const falling = (bits >> 31) != 0 ? bits : ~(bits | 0x80000000u);
  return std::uint64_t{falling} << 32 | static_cast<std::uint32_t>(sample);
}

struct average_precisions {
  double labels = 0.0;    ///< of the labels
  double inverted = 0.0;  ///< of the inverted labels
};

/// Of one unit, whose samples are in order.
inline average_precisions average_precisions_of(std::span<std::uint64_t const> in_order,
                                                std::span<std::int32_t const> labels) {
  std::int64_t found[2] = {}, before[2] = {};
  double sum[2] = {};
  for (std::size_t i = 0; i < in_order.size();) {
    std::uint64_t const threshold = in_order[i] >> 32;
    for (; i < in_order.size() && in_order[i] >> 32 == threshold; ++i) {
      std::int32_t const label = labels[static_cast<std::uint32_t>(in_order[i])];
      if (label >= 0) ++found[label];
    }
    double const all = static_cast<double>(found[0] + found[1]);
    for (int label = 0; label < 2; ++label) {
      if (found[label] == before[label]) continue;
      sum[label] += static_cast<double>(found[label] - before[label]) * static_cast<double>(found[label]) / all;
      before[label] = found[label];
    }
  }
  auto const mean = [&](int label) { return found[label] == 0 ? 0.0 : sum[label] / static_cast<double>(found[label]); };
  return {mean(1), mean(0)};
}

/// Of one unit.
inline average_precisions average_precisions_of(char const* what, std::span<float const> activations,
                                                std::span<std::int32_t const> labels) {
  std::string const name = std::string(what) + ", labels";
  check_size(name.c_str(), labels, static_cast<std::int64_t>(activations.size()), " labels, one for each sample");
  check_labels(name.c_str(), labels);
  std::vector<std::uint64_t> in_order;
  in_order.reserve(activations.size());
  for (float a : activations) in_order.push_back(sort_key(what, a, static_cast<std::int64_t>(in_order.size())));
  std::sort(in_order.begin(), in_order.end());
  return average_precisions_of(in_order, labels);
}

}  // namespace detail

/// What a unit makes of a text, to `result`, [units]: the largest max(0, inner value) of its positions.
///
/// `inner`, [positions, units], are inner values before the activation (W_in x). `active`, [positions], is 0 for padding, which counts
/// as -1e12 there, so that a text of padding alone gives zeros; where it is empty all positions are active. A NaN stays one. In a
/// Mixture-of-Experts layer the publication takes the units of all experts, whether the router sends the token there or not.
/// Source: Zhang et al. 2023, with its code (an encoder's layers); inner values of gated experts are none of it.
inline void text_activation(view<float const> inner, std::span<std::uint8_t const> active, std::span<float> result) {
  detail::check_matrix("text_activation, inner", inner, " (positions x units)");
  if (!active.empty()) {
    detail::check_size("text_activation, active", active, inner.rows, " numbers, one for each position");
  }
  detail::check_size("text_activation, result", result, inner.columns, " numbers, one for each unit");
  std::fill(result.begin(), result.end(), 0.0f);
  for (std::int64_t position = 0; position < inner.rows; ++position) {
    if (!active.empty() && active[static_cast<std::size_t>(position)] == 0) continue;
    float const* const row = inner.row(position);
    for (std::size_t unit = 0; unit < result.size(); ++unit) {
      if (row[unit] > result[unit] || std::isnan(row[unit])) result[unit] = row[unit];
    }
  }
}

/// The sum over thresholds, from the largest score down, of the step in recall times the precision there. Equal scores are one
/// threshold. Samples with the label -1 do not count; without a label of 1 the result is 0. Scores must be numbers.
/// Source: Zhang et al. 2023, where it is scikit-learn's.
inline double average_precision(std::span<float const> scores, std::span<std::int32_t const> labels) {
  return detail::average_precisions_of("average_precision", scores, labels).labels;
}

/// The predictivity of a unit for a sub-function: the larger one of the average precisions of its activations for the labels and for
/// the inverted labels. A unit that is always the same has the larger share of a label.
/// Source: Zhang et al. 2023.
inline double predictivity(std::span<float const> activations, std::span<std::int32_t const> labels) {
  auto const both = detail::average_precisions_of("predictivity", activations, labels);
  return std::max(both.labels, both.inverted);
}

/// The same of many units and sub-functions: `activations` is [samples, units], `labels` [sub-functions, samples]. Returns
/// [sub-functions, units]. Each unit is sorted once: O(units * samples * (log(samples) + sub-functions)).
inline std::vector<double> predictivity(view<float const> activations, view<std::int32_t const> labels) {
  detail::check_matrix("predictivity, activations", activations, " (samples x units)");
  detail::check_size("predictivity, labels", labels.columns, activations.rows, " labels, one for each sample");
  if (labels.columns > 0) detail::check_matrix("predictivity, labels", labels, " (sub-functions x samples)");
  if (activations.rows >= std::int64_t{1} << 32) {
    detail::refuse("predictivity, activations", "less than 2^32 samples", std::to_string(activations.rows));
  }
  std::int64_t const samples = activations.rows, units = activations.columns;
  for (std::int64_t f = 0; f < labels.rows; ++f)
    detail::check_labels("predictivity, labels", detail::row_of(labels, f));

  constexpr std::int64_t together = 16;  // a line of memory has them
  std::vector<double> result(static_cast<std::size_t>(labels.rows * units));
  std::vector<std::uint64_t> keys(static_cast<std::size_t>(together * samples));
  for (std::int64_t first = 0; first < units; first += together) {
    std::int64_t const count = std::min(together, units - first);
    for (std::int64_t sample = 0; sample < samples; ++sample) {
      float const* const row = activations.row(sample) + first;
      for (std::int64_t i = 0; i < count; ++i) {
        keys[static_cast<std::size_t>(i * samples + sample)] = detail::sort_key("predictivity", row[i], sample);
      }
    }
    for (std::int64_t i = 0; i < count; ++i) {
      std::span<std::uint64_t> const in_order(keys.data() + i * samples, static_cast<std::size_t>(samples));
      std::sort(in_order.begin(), in_order.end());
      for (std::int64_t f = 0; f < labels.rows; ++f) {
        auto const both = detail::average_precisions_of(in_order, detail::row_of(labels, f));
        result[static_cast<std::size_t>(f * units + first + i)] = std::max(both.labels, both.inverted);
      }
    }
  }
  return result;
}

/// The `count` units with the largest values, the largest first; equal ones in the order of their numbers.
inline std::vector<std::int32_t> top_units(std::span<double const> values, std::int64_t count) {
  std::int64_t const units = static_cast<std::int64_t>(values.size());
  if (count < 0 || count > units) {
    detail::refuse("top_units, count", "0 to " + std::to_string(units), std::to_string(count));
  }
  detail::check_numbers("top_units, values", values);
  std::vector<std::int32_t> order(values.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int32_t>(i);
  auto const value = [&](std::int32_t unit) { return values[static_cast<std::size_t>(unit)]; };
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](std::int32_t a, std::int32_t b) {
    return value(a) > value(b) || (value(a) == value(b) && a < b);
  });
  order.resize(static_cast<std::size_t>(count));
  return order;
}

/// The mean over sub-functions of every unit's predictivity, [units]: that for a task whose labels are several splits.
/// Source: Zhang et al. 2023, Restricting experts.
inline std::vector<double> mean_predictivity(view<double const> predictivity) {
  detail::check_matrix("mean_predictivity, predictivity", predictivity, " (sub-functions x units)");
  if (predictivity.rows == 0) detail::refuse("mean_predictivity, predictivity", "at least 1 sub-function", "none");
  std::vector<double> result(static_cast<std::size_t>(predictivity.columns));
  for (std::int64_t f = 0; f < predictivity.rows; ++f) {
    for (std::size_t unit = 0; unit < result.size(); ++unit) result[unit] += predictivity.row(f)[unit];
  }
  for (double& value : result) value /= static_cast<double>(predictivity.rows);
  return result;
}

/// The mean over sub-functions of the predictivity of the best unit: `predictivity` is [sub-functions, units].
/// Source: Zhang et al. 2023, which compares it with that of a model before training.
inline double best_predictivity(view<double const> predictivity) {
  detail::check_matrix("best_predictivity, predictivity", predictivity, " (sub-functions x units)");
  if (predictivity.rows == 0) detail::refuse("best_predictivity, predictivity", "at least 1 sub-function", "none");
  double sum = 0.0;
  for (std::int64_t f = 0; f < predictivity.rows; ++f) {
    auto const row = detail::row_of(predictivity, f);
    detail::check_numbers("best_predictivity, predictivity", row);
    sum += *std::max_element(row.begin(), row.end());
  }
  return sum / static_cast<double>(predictivity.rows);
}

}  // namespace switchyard::modularity
