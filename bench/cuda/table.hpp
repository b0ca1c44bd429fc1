#pragma once

#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdio>
#include <map>
#include <ostream>
#include <string>
#include <vector>

namespace switchyard::bench {

/// Prints one block per layer, one line per case and contender; at the end how the peers did over all cases.
class gpu_table : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(Context const& context) override {
    PrintBasicContext(&GetOutputStream(), context);
    GetOutputStream()
        << "floor: the least time that the step can take on this GPU, as a share of the time it took\n"
           "forward/peer, experts/peer: our speed over the peer's, above 1 we are faster; peers get the routes\n"
           "spread: slowest less fastest sample, over the median; graph: replayed as a CUDA graph\n"
           "contenders of a case take turns, and ratios are medians over the rounds\n"
        << std::flush;
    return true;
  }

  void ReportRuns(std::vector<Run> const& runs) override {
    for (Run const& run : runs) {
      std::string const& name = run.run_name.function_name;
      std::size_t const peer = name.compare(0, 5, "peer/") == 0 ? 5 : 0;
      std::size_t const begin = name.find('/', peer), end = name.find("/tokens:");
      std::string const line = name.substr(0, begin), layer = name.substr(begin + 1, end - begin - 1);
      if (layer != layer_) {
        layer_ = layer;
        std::printf("\n%s\n%6s  %-8s %-20s %10s %9s %8s %7s %7s %5s %13s %13s\n", layer.c_str(), "tokens", "skew", "",
                    "us", "TFLOP/s", "GB/s", "floor", "spread", "graph", "forward/peer", "experts/peer");
      }
      std::string const tokens = between(name, "/tokens:");
      std::printf("%6s  %-8s %-20s", tokens.c_str(), between(name, "/skew:").c_str(), line.c_str());
      if (run.error_occurred) {
        bool const fault = !run.error_message.starts_with("left out");
        std::printf(" %s%s\n", fault ? "FAILED: " : "", run.error_message.c_str());
        if (!fault) ++left_out_;
        continue;
      }
      auto const counter = [&](char const* key) {
        auto const found = run.counters.find(key);
        return found == run.counters.end() ? 0.0 : static_cast<double>(found->second.value);
      };
      std::printf(" %10.2f %9.1f %8.0f %6.1f%% %6.1f%% %5s",
                  1e6 * run.GetAdjustedRealTime() / benchmark::GetTimeUnitMultiplier(run.time_unit),
                  counter("flop/s") / 1e12, counter("bytes/s") / 1e9, 100.0 * counter("floor_share"),
                  100.0 * counter("spread"), counter("graph") > 0.0 ? "yes" : "no");
      if (peer > 0) {
        std::printf(" %12.2fx %12.2fx", counter("forward_over_peer"), counter("experts_over_peer"));
        means& of = peers_[line][std::stoll(tokens) <= 64 ? 0 : 1];
        of.forward += std::log(counter("forward_over_peer"));
        of.experts += std::log(counter("experts_over_peer"));
        ++of.cases;
      }
      if (run.counters.contains("x_base")) {
        std::printf(" %12.3fx base (%.3f to %.3f)", counter("x_base"), counter("x_base_least"), counter("x_base_most"));
      }
      if (run.counters.contains("x_best")) std::printf(" %12.3fx best", counter("x_best"));
      if (run.counters.contains("passes")) std::printf(", %.2f passes of a token", counter("passes"));
      std::printf("%s%s\n", run.report_label.empty() ? "" : "  ", run.report_label.c_str());
    }
    std::fflush(stdout);
  }

  void Finalize() override {
    if (left_out_ > 0) std::printf("\n%d lines were left out\n", left_out_);
    if (!peers_.empty()) std::printf("\nOur speed over the peer's, geometric means\n");
    for (auto const& [peer, few_and_many] : peers_) {
      for (int many = 0; many < 2; ++many) {
        means const& of = few_and_many[many];
        if (of.cases == 0) continue;
        std::printf("  %-20s %-18s forward %5.2fx  experts %5.2fx  (%d cases)\n", peer.c_str(),
                    many == 0 ? "up to 64 tokens" : "more than 64 tokens", std::exp(of.forward / of.cases),
                    std::exp(of.experts / of.cases), of.cases);
      }
    }
    std::fflush(stdout);
  }

 private:
  struct means {
    double forward = 0.0, experts = 0.0;  // sums of logarithms
    int cases = 0;
  };

  /// What stands between a label and the next slash.
  static std::string between(std::string const& name, std::string const& label) {
    std::size_t const begin = name.find(label) + label.size();
    return name.substr(begin, name.find('/', begin) - begin);
  }

  std::string layer_;
  int left_out_ = 0;
  std::map<std::string, means[2]> peers_;
};

}  // namespace switchyard::bench
