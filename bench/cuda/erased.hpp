#pragma once

#include "../arguments.hpp"
#include "../work.hpp"

#include <switchyard/dispatch/plan.hpp>

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

/// Layers behind function pointers, so that the bench is compiled once and not once per layer.
namespace switchyard::bench {

using gpu_memory = call_memory<bfloat16>;
using gpu_step = void (*)(gpu_memory const&, cudaStream_t);

/// What of a layer can be enqueued alone, each on what the steps before it left in the workspace.
enum step : int { whole_step, route_step, plan_step, experts_step, in_step, out_step, cuda_step, all_steps };

/// Of an expert, for the peers and the check.
enum class nonlinearity { relu, silu, clamped_swiglu };

/// A layer on the bench's backend. Null: it has no such step.
struct gpu_layer {
  std::string name;
  shape dims;
  expert_traits expert;
  bool router_bias = false;
  nonlinearity activation = nonlinearity::relu;
  std::array<gpu_step, all_steps> enqueue = {};
  std::size_t (*workspace_bytes)(std::int64_t tokens) = nullptr;
  layer_costs (*costs)(std::int64_t tokens, double experts_used) = nullptr;
  work (*route_work)(std::int64_t tokens) = nullptr;
  work (*forward_work)(std::int64_t tokens, std::int64_t rows, int experts_used) = nullptr;
  /// Whether the products of so many tokens are those of Hopper.
  bool (*has_grouped_products)(std::int64_t tokens) = nullptr;
  dispatch_plan (*plan_of)(gpu_memory const&) = nullptr;
  float const* (*combine_weights_of)(gpu_memory const&) = nullptr;

  /// Features of the products in: gate and up, or up.
  int in_features() const { return expert.input_projections() * dims.intermediate; }
};

/// The layers that files of `layers/` compile, with their places in `gpu_layers`.
inline std::vector<std::pair<std::size_t, gpu_layer>>& compiled_layers() {
  static std::vector<std::pair<std::size_t, gpu_layer>> all;
  return all;
}

/// Layers that differ in the router alone.
struct gpu_methods {
  bool small = false;                             ///< what a smoke run takes
  gpu_layer base, shared, clustered, stratified;  ///< only whole
  /// The same layers on the CPU, on memory of the host, with as many bytes of workspace as any of them needs.
  std::array<void (*)(gpu_memory const&), 4> on_cpu = {};
  std::size_t (*cpu_workspace_bytes)(std::int64_t tokens) = nullptr;
};

/// Those that files of `methods/` compile.
inline std::vector<gpu_methods>& compiled_methods() {
  static std::vector<gpu_methods> all;
  return all;
}

/// A product of a layer with tiles of its own.
struct gpu_tiling {
  std::string name;
  bool in;  ///< the first of the two products
  gpu_step enqueue;
};

struct gpu_tilings {
  bool small = false;
  gpu_layer layer;
  std::vector<gpu_tiling> products;
};

/// Those that files of `tilings/` compile, on Hopper alone.
inline std::vector<gpu_tilings>& compiled_tilings() {
  static std::vector<gpu_tilings> all;
  return all;
}

/// What stands for codes and scales of a layer's matrices in any format.
struct quantised_bytes {
  std::uint8_t const* codes;  ///< as many bytes as all matrices have weights
  float const* floats;
  half const* halves;
  std::uint8_t const* exponents;
};

/// A layer whose matrices have this format, or stand elsewhere.
struct gpu_format {
  std::string name;
  double bits;  ///< of a weight
  void (*enqueue)(gpu_memory const&, quantised_bytes const&, cudaStream_t);
  std::size_t (*workspace_bytes)(std::int64_t tokens);
};

/// Layers that differ in how their matrices are stored alone.
struct gpu_quantised {
  bool small = false;
  gpu_layer base;  ///< with matrices of bfloat16
  std::vector<gpu_format> formats;
};

/// Those that files of `quantised/` compile.
inline std::vector<gpu_quantised>& compiled_quantised() {
  static std::vector<gpu_quantised> all;
  return all;
}

}  // namespace switchyard::bench
