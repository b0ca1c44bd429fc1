#pragma once

#include "ceilings.hpp"
#include "erased.hpp"

#include <cstdint>
#include <vector>

/// How a step of a layer becomes lines of the table.
namespace switchyard::bench {

/// What the command line decides, and the ceilings of this machine.
struct settings {
  int threads = 1;
  bool smoke = false;
  bool has_min_time = false;  ///< Google Benchmark's own options are set
  bool has_repetitions = false;
  ceilings machine;

  std::vector<std::int64_t> tokens() const {
    return smoke ? std::vector<std::int64_t>{1, 64} : std::vector<std::int64_t>{1, 8, 64, 512, 2048};
  }
  /// A line is measured so many times, each for so many seconds: the table shows how far apart they lie.
  int repetitions() const { return smoke ? 3 : 5; }
  double seconds() const { return smoke ? 0.002 : 0.05; }
};

inline settings& current_settings() {
  static settings the_settings;
  return the_settings;
}

inline constexpr std::int64_t mib = 1 << 20;

/// Bytes of one copy of a layer's weights.
template <class Element>
std::int64_t weight_bytes(cpu_layer<Element> const& of) {
  return of.facts.parameters * static_cast<std::int64_t>(sizeof(Element));
}

/// Registers the steps of a layer for every number of tokens and every skew.
template <class Element>
void add_lines(cpu_layer<Element> const& of);

}  // namespace switchyard::bench
