#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace switchyard::bench {

/// What one contender's calls took.
struct outcome {
  std::string contender;
  double seconds = 0.0;
  std::int64_t bytes = 0;  ///< read
  std::int64_t needed = 0, hits = 0, on_the_way = 0, unused = 0;
  double waiting = 0.0;
  std::int64_t peak_bytes = 0;
  std::uint64_t hash = 0;  ///< of all outputs
  bool measured = true;    ///< or simulated: then there is neither time nor output
};

/// All contenders at one budget.
struct budget_results {
  double share;
  std::int64_t places, belady_bytes;
  double bytes_per_second, resident_seconds;
  std::vector<outcome> outcomes;

  /// The least time for so many bytes.
  double bound(std::int64_t bytes) const {
    return std::max(resident_seconds, static_cast<double>(bytes) / bytes_per_second);
  }
  outcome const* find(std::string const& contender) const {
    for (outcome const& o : outcomes) {
      if (o.contender == contender) return &o;
    }
    return nullptr;
  }
};

/// All budgets of one trace.
struct trace_results {
  std::string name;
  std::int64_t calls, tokens, pieces, piece_bytes;
  std::vector<budget_results> budgets;
};

}  // namespace switchyard::bench
