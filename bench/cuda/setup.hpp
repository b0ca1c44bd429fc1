#pragma once

#include "../ceilings.hpp"
#include "../skew.hpp"
#include "cublas.hpp"
#include "erased.hpp"
#include "timing.hpp"

#include <benchmark/benchmark.h>

#include <cuda_runtime.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

/// What the parts of the bench share.
namespace switchyard::bench {

/// What the command line decides, and what the GPU is like.
struct gpu_setup {
  bool smoke = false;
  cudaStream_t stream = nullptr;  ///< of everything that is checked or timed; waits for CUDA's default stream
  std::unique_ptr<cublas> peer;   ///< null: cuBLAS does not start here
  ceilings machine;               ///< bfloat16 products of cuBLAS (0 without it), bytes read or copied
  std::int64_t cache_bytes = 0;   ///< L2
  /// No case begins later.
  std::chrono::steady_clock::time_point deadline = std::chrono::steady_clock::time_point::max();
};

inline gpu_setup& current_gpu() {
  static gpu_setup the_setup;
  return the_setup;
}

/// Measures both on the stream; takes about a second.
ceilings measure_gpu_ceilings(gpu_setup const& gpu);

struct bench_case {
  std::int64_t tokens;
  skew spread;
};

/// Why a line has no time, where that is no fault.
struct left_out : std::runtime_error {
  explicit left_out(std::string const& why) : std::runtime_error("left out: " + why) {}
};

/// Before a case is measured.
inline void begin_case() {
  if (std::chrono::steady_clock::now() > current_gpu().deadline) throw left_out("no time");
}

/// Whether all lines that were measured did their work: peers computed the same, nothing threw.
inline bool& all_lines_are_right() {
  static bool right = true;
  return right;
}

/// So many turns of a call that moves so many bytes that a round reads several times what the L2 holds.
int turns_for(double bytes_of_a_call);

/// Registers a line that `body(state)` reports, with the time that it sets; what it throws is told in the line.
template <class Body>
void add_line(std::string const& name, Body body) {
  auto const guarded = [body](benchmark::State& state) {
    try {
      body(state);
    } catch (left_out const& why) {
      state.SkipWithError(why.what());
    } catch (std::exception const& e) {
      all_lines_are_right() = false;
      state.SkipWithError(e.what());
    }
  };
  benchmark::RegisterBenchmark(name.c_str(), guarded)->UseManualTime()->Unit(benchmark::kMillisecond)->Iterations(1);
}

/// The median as the line's time; how many samples, and how far apart they lie.
inline void report_time(benchmark::State& state, timing const& time) {
  samples_range const range = time.range();
  for (auto _ : state) state.SetIterationTime(range.median);
  state.counters["samples"] = static_cast<double>(time.rounds.size());
  state.counters["spread"] = range.spread();
  state.counters["least_us"] = 1e6 * range.least;
  state.counters["most_us"] = 1e6 * range.most;
  state.counters["graph"] = time.replayed ? 1.0 : 0.0;
}

/// What each call would be in a second.
inline benchmark::Counter rate_of(double each) {
  return benchmark::Counter(each, benchmark::Counter::kIsIterationInvariantRate);
}

// ---- the parts; each checks against something else and prints what came out, or registers its lines ----

bool agrees_with_double(gpu_layer const& of, std::size_t place);
void add_layer_lines();

bool methods_agree(gpu_methods const& of);
void add_method_lines();

void add_tiling_lines();

void add_quantised_lines();

}  // namespace switchyard::bench
