#include "timing.hpp"

#include "device.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <exception>
#include <memory>
#include <vector>

namespace switchyard::bench {

namespace {

class event {
 public:
  event() { check_cuda(cudaEventCreate(&event_)); }
  event(event const&) = delete;
  ~event() { cudaEventDestroy(event_); }
  operator cudaEvent_t() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

/// One contender, ready to run: as a graph, or call by call.
class runner {
 public:
  runner(contender const& what, int turns, cudaStream_t stream) : what_(&what), turns_(turns), stream_(stream) {
    pass();  // loads kernels, which cannot be captured
    check_cuda(cudaStreamSynchronize(stream_));
    if (what.replay) capture();
    pass();
    check_cuda(cudaStreamSynchronize(stream_));
  }
  runner(runner const&) = delete;
  ~runner() {
    if (replay_ != nullptr) cudaGraphExecDestroy(replay_);
  }

  /// Seconds of one call, in so many passes over all turns.
  double time(int passes) {
    check_cuda(cudaEventRecord(begin_, stream_));
    for (int i = 0; i < passes; ++i) pass();
    check_cuda(cudaEventRecord(end_, stream_));
    check_cuda(cudaEventSynchronize(end_));
    float milliseconds = 0.0f;
    check_cuda(cudaEventElapsedTime(&milliseconds, begin_, end_));
    return 1e-3 * milliseconds / (passes * turns_);
  }

  bool replayed() const { return replay_ != nullptr; }

 private:
  void pass() {
    if (replay_ != nullptr) {
      check_cuda(cudaGraphLaunch(replay_, stream_));
    } else {
      for (int turn = 0; turn < turns_; ++turn) what_->enqueue(turn);
    }
  }

  /// Leaves `replay_` empty where a call cannot be captured. Not in the strictest mode: a library may allocate.
  void capture() {
    cudaGraph_t graph = nullptr;
    check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed));
    bool enqueued = true;
    try {
      pass();
    } catch (std::exception const&) {
      enqueued = false;
    }
    bool const ended = cudaStreamEndCapture(stream_, &graph) == cudaSuccess;
    if (enqueued && ended && cudaGraphInstantiate(&replay_, graph, 0) != cudaSuccess) replay_ = nullptr;
    if (graph != nullptr) cudaGraphDestroy(graph);
    static_cast<void>(cudaGetLastError());
  }

  contender const* what_;
  int turns_;
  cudaStream_t stream_;
  cudaGraphExec_t replay_ = nullptr;
  event begin_, end_;
};

}  // namespace

std::vector<timing> take_turns(std::vector<contender> const& contenders, schedule const& with, cudaStream_t stream) {
  std::vector<std::unique_ptr<runner>> runners;
  std::vector<int> passes;
  double round_seconds = 0.0;
  for (contender const& c : contenders) {
    runners.push_back(std::make_unique<runner>(c, with.turns, stream));
    double const pass_seconds = std::max(runners.back()->time(1) * with.turns, 1e-7);
    passes.push_back(std::max(1, static_cast<int>(std::ceil(with.sample_seconds / pass_seconds))));
    round_seconds += passes.back() * pass_seconds;
  }
  std::size_t const count = contenders.size();
  int const rounds = std::clamp(static_cast<int>(with.seconds * static_cast<double>(count) / round_seconds),
                                with.least_rounds, with.most_rounds);

  std::vector<timing> result(count);
  for (std::size_t i = 0; i < count; ++i) result[i].replayed = runners[i]->replayed();
  for (int round = 0; round < rounds; ++round) {
    for (std::size_t i = 0; i < count; ++i) {
      std::size_t const which = (i + static_cast<std::size_t>(round)) % count;
      result[which].rounds.push_back(runners[which]->time(passes[which]));
    }
  }
  return result;
}

}  // namespace switchyard::bench
