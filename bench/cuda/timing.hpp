#pragma once

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
  double median = 0.0, least = 0.0, most = 0.0;
  int samples = 0;
  bool replayed = false;  ///< as a CUDA graph
};

struct schedule {
  int turns = 1;                 ///< sets of data that calls go round
  double seconds = 0.1;          ///< for each contender, about
  double sample_seconds = 2e-3;  ///< between two events, at least: the calls of one sample follow each other
  int least_rounds = 3, most_rounds = 25;
};

/// Times all contenders by events on the stream. Each round every one runs for one sample, and another one begins, so
/// that a clock that changes meets them alike.
std::vector<timing> take_turns(std::vector<contender> const& contenders, schedule const& with, cudaStream_t stream);

}  // namespace switchyard::bench
