#pragma once

#include "../ceilings.hpp"
#include "../skew.hpp"
#include "cublas.hpp"

#include <cuda_runtime.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

/// What the benches of all layers share.
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

/// One layer of the bench.
struct bench_layer {
  bool small = false;               ///< what a smoke run takes
  std::function<bool()> agrees;     ///< checks against float64, and prints what came out
  std::function<void()> add_lines;  ///< registers its benchmarks
};

/// The layers in `layers/*.cu`; each file adds its own before main begins.
inline std::vector<bench_layer>& bench_layers() {
  static std::vector<bench_layer> layers;
  return layers;
}

/// Whether all lines did their work: peers computed the same, nothing threw.
inline bool& all_lines_are_right() {
  static bool right = true;
  return right;
}

}  // namespace switchyard::bench
