#pragma once

#include "../samples.hpp"

#include <cuda_runtime.h>

#include <functional>
#include <string>
#include <vector>

/// Contenders that take turns on the GPU.
namespace switchyard::bench {

/// Something to be timed: `enqueue(turn)` puts one call on the stream, on the data of that turn.
struct contender {
  std::string name;
  std::function<void(int turn)> enqueue;
  bool replay = false;  ///< as a CUDA graph of one call per turn, where it can be captured
};

/// Seconds of one call.
struct timing {
  std::vector<double> rounds;  ///< one sample each; a round is the same time for all contenders
  bool replayed = false;       ///< as a CUDA graph

  samples_range range() const { return range_of(rounds); }
  double median() const { return range().median; }
};

struct schedule {
  int turns = 1;                 ///< sets of data that calls go round
  double seconds = 0.1;          ///< for each contender, about
  double sample_seconds = 2e-3;  ///< between two events, at least: the calls of one sample follow each other
  int least_rounds = 3, most_rounds = 25;
};

/// Once each, for a smoke run.
inline schedule once(int turns) {
  return {.turns = turns, .seconds = 0.0, .sample_seconds = 0.0, .least_rounds = 1, .most_rounds = 1};
}

/// Times all contenders by events on the stream. Each round every one runs for one sample, and another one begins, so
/// that a clock that changes meets them alike.
std::vector<timing> take_turns(std::vector<contender> const& contenders, schedule const& with, cudaStream_t stream);

}  // namespace switchyard::bench
