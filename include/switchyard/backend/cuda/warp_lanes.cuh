#pragma once

#include <switchyard/backend/cuda/block_sums.cuh>
#include <switchyard/core/lanes.hpp>

namespace switchyard::cuda {

/// The lane group of a GPU: the 32 lanes of a warp, all of them at work. On the host it only exists so that policies
/// can be compiled; it is never called there.
struct warp_lanes {
  static constexpr int size = 32;

  SWITCHYARD_HD int rank() const {
#if defined(__CUDA_ARCH__)
    return static_cast<int>(threadIdx.x % 32);
#else
    return 0;
#endif
  }

  SWITCHYARD_HD float sum(float value) const {
#if defined(__CUDA_ARCH__)
    value = sum_over_warp(value);
#endif
    return value;
  }

  SWITCHYARD_HD float max(float value) const {
#if defined(__CUDA_ARCH__)
    for (int distance = 16; distance > 0; distance /= 2) {
      float const other = __shfl_xor_sync(~0u, value, distance);
      value = other > value ? other : value;
    }
#endif
    return value;
  }

  SWITCHYARD_HD candidate best(candidate c) const {
#if defined(__CUDA_ARCH__)
    for (int distance = 16; distance > 0; distance /= 2) {
      candidate const other{__shfl_xor_sync(~0u, c.value, distance), __shfl_xor_sync(~0u, c.id, distance)};
      if (precedes(other, c)) c = other;
    }
#endif
    return c;
  }

  SWITCHYARD_HD float from(float value, int lane) const {
#if defined(__CUDA_ARCH__)
    return __shfl_sync(~0u, value, lane);
#else
    static_cast<void>(lane);
    return value;
#endif
  }
};

}  // namespace switchyard::cuda
