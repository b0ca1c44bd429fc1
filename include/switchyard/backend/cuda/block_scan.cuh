#pragma once

#include <cuda_runtime.h>

#include <cstdint>

/// Sums over the threads of a block. Including CUB's costs every user over five seconds of compilation.
namespace switchyard::cuda {

struct scanned {
  std::int32_t before;  ///< the sum over all threads before this one
  std::int32_t all;     ///< the sum over all threads
};

/// Called by all threads of a block of `Threads`, a multiple of 32 up to 1024.
template <int Threads>
__device__ scanned scan_block(std::int32_t value) {
  constexpr int warps = Threads / 32;
  __shared__ std::int32_t sums[warps];
  int const warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  std::int32_t up_to = value;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    std::int32_t const other = __shfl_up_sync(~0u, up_to, distance);
    if (lane >= distance) up_to += other;
  }
  __syncthreads();  // `sums` may be in use by the last call
  if (lane == 31) sums[warp] = up_to;
  __syncthreads();
  scanned result{up_to - value, 0};
#pragma unroll
  for (int w = 0; w < warps; ++w) {
    if (w < warp) result.before += sums[w];
    result.all += sums[w];
  }
  return result;
}

}  // namespace switchyard::cuda
