#pragma once

#include <benchmark/benchmark.h>

#include <cstdio>
#include <ostream>
#include <string>
#include <vector>

namespace switchyard::bench {

/// Prints one block per step and layer, one line per number of tokens and skew. With repetitions, their medians.
class table_reporter : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(Context const& context) override {
    PrintBasicContext(&GetOutputStream(), context);
    GetOutputStream()
        << "floor: the least time that the step can take on this machine, as a share of the time it took\n"
        << std::flush;
    return true;
  }

  void ReportRuns(std::vector<Run> const& runs) override {
    for (Run const& run : runs) {
      bool const aggregate = run.run_type == Run::RT_Aggregate;
      if (aggregate ? run.aggregate_name != "median" : run.repetitions > 1) continue;
      std::string const& name = run.run_name.function_name;
      std::size_t const end = name.find("/tokens:");
      if (name.substr(0, end) != block_) {
        block_ = name.substr(0, end);
        std::printf("\n%s\n%8s  %-8s %12s %12s %12s %10s %7s\n", block_.c_str(), "tokens", "skew", "time", "tokens/s",
                    "GFLOP/s", "GB/s", "floor");
      }
      std::string const tokens = between(name, "/tokens:"), skew = between(name, "/skew:");
      auto const counter = [&](char const* key) { return run.counters.at(key).value; };
      double const gigaflops = counter("flop/s") / 1e9;
      std::printf("%8s  %-8s %12s %12.0f", tokens.c_str(), skew.c_str(),
                  duration(run.GetAdjustedRealTime() / benchmark::GetTimeUnitMultiplier(run.time_unit)).c_str(),
                  counter("tokens/s"));
      if (gigaflops > 0.0) {
        std::printf(" %12.1f", gigaflops);
      } else {
        std::printf(" %12s", "-");
      }
      std::printf(" %10.2f %6.1f%%\n", counter("bytes/s") / 1e9, 100.0 * counter("floor_share"));
    }
    std::fflush(stdout);
  }

 private:
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
