#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

/// What is told of measurements that were repeated.
namespace switchyard::bench {

struct samples_range {
  double least = 0.0, median = 0.0, most = 0.0;

  /// How far apart they lie, as a share of the median.
  double spread() const { return median > 0.0 ? (most - least) / median : 0.0; }
};

inline samples_range range_of(std::vector<double> samples) {
  if (samples.empty()) return {};
  std::sort(samples.begin(), samples.end());
  return {samples.front(), samples[samples.size() / 2], samples.back()};
}

/// One contender's measurements over another's of the same rounds: what slowed down a whole round does not show in it.
inline samples_range ratios_of(std::vector<double> const& over, std::vector<double> const& under) {
  std::vector<double> ratios;
  for (std::size_t round = 0; round < std::min(over.size(), under.size()); ++round) {
    ratios.push_back(over[round] / under[round]);
  }
  return range_of(ratios);
}

}  // namespace switchyard::bench
