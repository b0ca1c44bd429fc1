#pragma once

#include <switchyard/backend/cuda/products.cuh>
#include <switchyard/backend/cuda/steps.cuh>

#include <string_view>

namespace switchyard::backend {

/// Runs a layer on an NVIDIA GPU of compute capability 8.0 or newer. Everything that the arguments point to is device
/// memory.
///
/// `forward` enqueues a fixed number of kernels and returns: it allocates nothing, waits for nothing and reads nothing
/// back, so it can be captured in a CUDA graph. The result has the same bits on every run. Logits or routes that are no
/// numbers, or name no expert, cannot be reported: the outputs of their tokens are NaN.
struct cuda : switchyard::cuda::layer_steps<switchyard::cuda::portable_products> {
  static constexpr std::string_view name = "cuda";

  /// The name with what a layer makes of it, for `describe`.
  template <class Layer>
  static constexpr std::string_view name_for() {
    return name;
  }
};

}  // namespace switchyard::backend
