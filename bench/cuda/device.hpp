#pragma once

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

/// So many objects in device memory, uninitialised or copied. Not `thrust::device_vector`: its header costs every unit five
/// seconds of compilation, and it writes gigabytes that are then written again.
template <class T>
class device_memory {
 public:
  device_memory() = default;
  explicit device_memory(std::int64_t count) : count_(count) {
    if (count > 0) check_cuda(cudaMalloc(reinterpret_cast<void**>(&data_), bytes()));
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
  ~device_memory() { cudaFree(const_cast<void*>(static_cast<void const*>(data_))); }

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

}  // namespace switchyard::bench
