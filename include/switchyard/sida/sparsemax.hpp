#pragma once

#include <switchyard/core/lanes.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace switchyard::sida {

/// Which SparseMax. A predictor runs with the one that it was trained with.
enum class sparsemax_form {
  correct,  ///< tau = (sum of the support - 1) / support: the results sum to 1
  published  ///< as in SiDA's code, which subtracts 1 twice: tau = (sum of the support - 2) / support. They sum to 2 or more
};

/// What `sparsemax` found.
struct sparsemax_result {
  std::int64_t support;  ///< scores above the correct threshold, with either form
  double threshold;      ///< tau; not a number where a score is none, or is infinite
};

namespace detail {

struct members {
  double sum;
  std::int64_t count;
};

/// The values above a threshold.
inline members above(float threshold, float const* values, std::size_t count) {
  using floats = float __attribute__((vector_size(16)));
  using integers = std::int32_t __attribute__((vector_size(16)));
  constexpr std::size_t lanes = 4;
  floats const limit = floats{} + threshold;
  floats sums{};
  integers counts{};
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    floats x;
    std::memcpy(&x, values + i, sizeof x);
    sums += x > limit ? x : floats{};
    counts -= x > limit;
  }
  members result{0.0, 0};
  for (std::size_t l = 0; l < lanes; ++l) {
    result.sum += static_cast<double>(sums[l]);
    result.count += counts[l];
  }
  for (; i < count; ++i) {
    if (!(values[i] > threshold)) continue;
    result.sum += static_cast<double>(values[i]);
    ++result.count;
  }
  return result;
}

}  // namespace detail

/// Replaces each score by max(score - tau, 0), tau being such that the correct form is the nearest point of the probabilities. Scores that
/// are no numbers, or infinite, leave no number.
///
/// The threshold is found without sorting: the values that the last threshold left say the next one, until it leaves all of them
/// (Michelot 1986). A score that is less than the largest by 1 or more never counts.
/// Source: Martins and Astudillo 2016, From Softmax to Sparsemax, algorithm 1.
inline sparsemax_result sparsemax(std::span<float> scores, sparsemax_form form = sparsemax_form::correct) {
  if (scores.empty()) return {0, 0.0};
  float largest = scores[0];
  for (float s : scores) largest = largest < s ? s : largest;
  // Differences are exact near the largest, where the support is, however large the scores are.
  int unusable = 0;
  for (float& s : scores) {
    s -= largest;
    unusable |= s <= 0.0f ? 0 : 1;
  }
  if (unusable != 0) {
    for (float& s : scores) s = not_a_number;
    return {0, static_cast<double>(not_a_number)};
  }
  double tau = -1.0;
  detail::members left = detail::above(-1.0f, scores.data(), scores.size());
  for (std::int64_t before = left.count + 1; left.count < before;) {
    before = left.count;
    tau = (left.sum - 1.0) / static_cast<double>(left.count);
    left = detail::above(static_cast<float>(tau), scores.data(), scores.size());
  }
  if (form == sparsemax_form::published) tau -= 1.0 / static_cast<double>(left.count);
  auto const threshold = static_cast<float>(tau);
  for (float& s : scores) {
    float const p = s - threshold;
    s = p > 0.0f ? p : 0.0f;
  }
  return {left.count, static_cast<double>(largest) + tau};
}

}  // namespace switchyard::sida
