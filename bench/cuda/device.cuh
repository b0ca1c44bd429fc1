#pragma once

#include <switchyard/core/bfloat16.hpp>

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

/// How the benches reach the GPU.
namespace switchyard::bench {

inline void check_cuda(cudaError_t code) {
  if (code == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());
  throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(code));
}

/// So many objects in device memory, uninitialised or copied.
template <class T>
class device_memory {
 public:
  device_memory() = default;
  explicit device_memory(std::int64_t count) : count_(count) {
    if (count > 0) check_cuda(cudaMalloc(&data_, static_cast<std::size_t>(count) * sizeof(T)));
  }
  explicit device_memory(std::vector<T> const& values) : device_memory(static_cast<std::int64_t>(values.size())) {
    check_cuda(cudaMemcpy(data_, values.data(), bytes(), cudaMemcpyHostToDevice));
  }
  device_memory(device_memory&& other) noexcept { *this = std::move(other); }
  device_memory& operator=(device_memory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  ~device_memory() { cudaFree(data_); }

  T* data() const { return data_; }
  std::int64_t size() const { return count_; }
  std::size_t bytes() const { return static_cast<std::size_t>(count_) * sizeof(T); }

 private:
  T* data_ = nullptr;
  std::int64_t count_ = 0;
};

/// `count` values of device memory on the host.
template <class T>
std::vector<T> copied(T const* from, std::int64_t count) {
  std::vector<T> to(static_cast<std::size_t>(count));
  check_cuda(cudaMemcpy(to.data(), from, to.size() * sizeof(T), cudaMemcpyDeviceToHost));
  return to;
}

inline int attribute(cudaDeviceAttr which) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, which, 0));
  return value;
}

/// Blocks for a loop over `count` items that every thread strides through.
inline int blocks_for(std::int64_t count, int threads) {
  std::int64_t const needed = (count + threads - 1) / threads, most = 1 << 16;
  return static_cast<int>(needed < most ? needed : most);
}

/// This thread's place and the number of threads, for such a loop.
__device__ inline std::int64_t thread_index() { return std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ inline std::int64_t thread_count() { return std::int64_t{gridDim.x} * blockDim.x; }

template <class T>
__device__ T sum_of_warp(T value) {
  for (int apart = 16; apart > 0; apart /= 2) value += __shfl_xor_sync(0xffffffffu, value, apart);
  return value;
}

}  // namespace switchyard::bench
