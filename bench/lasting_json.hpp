#pragma once

#include <benchmark/benchmark.h>

#include <ostream>
#include <vector>

namespace switchyard::bench {

/// Google Benchmark's JSON, but whole after every line: a run that is stopped leaves what it has measured.
class lasting_json : public benchmark::JSONReporter {
 public:
  void ReportRuns(std::vector<Run> const& runs) override {
    benchmark::JSONReporter::ReportRuns(runs);
    std::ostream& out = GetOutputStream();
    auto const next = out.tellp();
    Finalize();
    out.flush();
    out.seekp(next);  // the next line, or the true end, takes the place of this one
  }
};

}  // namespace switchyard::bench
