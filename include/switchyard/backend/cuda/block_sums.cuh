#pragma once

#include <cuda_runtime.h>

#include <cstdint>

/// Sums over the threads of a warp and a block. Including CUB's costs every user over five seconds of compilation.
namespace switchyard::cuda {

struct scanned {
  std::int32_t before;  ///< the sum over all threads before this one
  std::int32_t all;     ///< the sum over all threads
};

/// The sum over a warp, on each of its lanes. They swap with their mirror image at each distance: both add the same two numbers, so
/// all get the same bits.
template <class T>
__device__ T sum_over_warp(T value) {
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

/// The sum over a block of at most so many warps, on each of its threads. Called by all of them.
template <int MostWarps, class T>
__device__ T sum_over_block(T value) {
  __shared__ T partial[MostWarps];
  value = sum_over_warp(value);
  __syncthreads();  // the last sum was read by all
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  T sum{};
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; ++warp) sum += partial[warp];
  return sum;
}

/// Sums over the threads before each, of integers. Called by all threads of a block of `Threads`, a multiple of 32 up to 1024.
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
