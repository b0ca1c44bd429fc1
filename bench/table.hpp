#pragma once

#include "samples.hpp"

#include <benchmark/benchmark.h>

#include <cstdio>
#include <ostream>
#include <string>
#include <vector>

namespace switchyard::bench {

/// Prints one block per step and layer, one line per number of tokens and skew: the median of its repetitions.
class table_reporter : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(Context const& context) override {
    PrintBasicContext(&GetOutputStream(), context);
    GetOutputStream()
        << "floor: the least time that the step can take on this machine, as a share of the time it took\n"
           "time: median of the repetitions; least and most: of all of them\n"
        << std::flush;
    return true;
  }

  /// All repetitions of a line come together, and then their aggregates, which are not wanted.
  void ReportRuns(std::vector<Run> const& runs) override {
    std::vector<double> seconds;
    for (Run const& run : runs) {
      if (run.run_type == Run::RT_Iteration && !run.error_occurred) seconds.push_back(seconds_of(run));
    }
    if (seconds.empty()) return;
    samples_range const range = range_of(seconds);
    for (Run const& run : runs) {
      if (run.run_type != Run::RT_Iteration || run.error_occurred || seconds_of(run) != range.median) continue;
      print(run, range);
      break;
    }
    std::fflush(stdout);
  }

 private:
  static double seconds_of(Run const& run) {
    return run.GetAdjustedRealTime() / benchmark::GetTimeUnitMultiplier(run.time_unit);
  }

  void print(Run const& run, samples_range const& range) {
    std::string const& name = run.run_name.function_name;
    std::size_t const end = name.find("/tokens:");
    if (name.substr(0, end) != block_) {
      block_ = name.substr(0, end);
      std::printf("\n%s\n%8s  %-8s %12s %12s %12s %12s %12s %10s %7s\n", block_.c_str(), "tokens", "skew", "time",
                  "least", "most", "tokens/s", "GFLOP/s", "GB/s", "floor");
    }
    std::string const tokens = between(name, "/tokens:"), skew = between(name, "/skew:");
    auto const counter = [&](char const* key) { return run.counters.at(key).value; };
    double const gigaflops = counter("flop/s") / 1e9;
    std::printf("%8s  %-8s %12s %12s %12s %12.0f", tokens.c_str(), skew.c_str(), duration(range.median).c_str(),
                duration(range.least).c_str(), duration(range.most).c_str(), counter("tokens/s"));
    if (gigaflops > 0.0) {
      std::printf(" %12.1f", gigaflops);
    } else {
      std::printf(" %12s", "-");
    }
    std::printf(" %10.2f %6.1f%%\n", counter("bytes/s") / 1e9, 100.0 * counter("floor_share"));
  }

  /// What stands between a label and the next slash.
  static std::string between(std::string const& name, std::string const& label) {
    std::size_t const begin = name.find(label) + label.size();
    return name.substr(begin, name.find('/', begin) - begin);
  }

  static std::string duration(double seconds) {
    char text[32];
    if (seconds >= 1.0) {
      std::snprintf(text, sizeof text, "%.3f s ", seconds);
    } else if (seconds >= 1e-3) {
      std::snprintf(text, sizeof text, "%.3f ms", seconds * 1e3);
    } else {
      std::snprintf(text, sizeof text, "%.3f us", seconds * 1e6);
    }
    return text;
  }

  std::string block_;
};

}  // namespace switchyard::bench
