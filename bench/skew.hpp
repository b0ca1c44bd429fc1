#pragma once

#include <switchyard/core/host_device.hpp>

#include <cmath>
#include <cstdint>

/// Seeded numbers, and which experts tokens choose. The same on the CPU and on a GPU.
namespace switchyard::bench {

/// How tokens spread over experts.
enum class skew {
  uniform,  ///< every expert is equally likely
  zipf,     ///< the i-th most popular expert is chosen with a weight of 1 / i
  one_hot   ///< all tokens choose the same top_k experts
};

inline constexpr skew all_skews[] = {skew::uniform, skew::zipf, skew::one_hot};

constexpr char const* name_of(skew s) {
  switch (s) {
    case skew::uniform: return "uniform";
    case skew::zipf: return "zipf";
    case skew::one_hot: return "one_hot";
  }
  return "unknown";
}

/// The same number between -1 and 1 for the same index and seed.
SWITCHYARD_HD inline float noise(std::int64_t index, std::uint32_t seed) {
  std::uint32_t x = static_cast<std::uint32_t>(index) * 0x9e3779b9u + seed * 0x85ebca6bu;
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  x ^= x >> 16;
  return static_cast<float>(static_cast<std::int32_t>(x)) * 0x1p-31f;
}

/// Feature `expert` of a token, which an expert's row of the router weight reads: log(popularity) + Gumbel noise, of
/// which the largest is expert e with a probability of e's share of the popularity. In another `set` other experts are
/// popular.
SWITCHYARD_HD inline float naming_feature(std::int64_t token, int expert, int experts, int top_k, skew spread,
                                          std::uint32_t set) {
  int const rank = (expert * 5 + static_cast<int>(set) * (experts / 8 + 1)) % experts;
  float popularity = 0.0f;  // its logarithm
  if (spread == skew::zipf) popularity = -std::log(1.0f + static_cast<float>(rank));
  if (spread == skew::one_hot) popularity = rank < top_k ? 0.0f : -30.0f;
  float const uniform = 0.5f + 0.4999f * noise(token * experts + expert, 2000 + set);
  return popularity - std::log(-std::log(uniform));
}

}  // namespace switchyard::bench
