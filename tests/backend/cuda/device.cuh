#pragma once

#include <switchyard/switchyard.cuh>

#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "layers.hpp"
#include "support.hpp"

/// How the tests reach the GPU.
namespace support {

inline void check_cuda(cudaError_t code) {
  if (code != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(code));
}

/// Whether there is a device. Says so if not; a test then returns, and CTest counts it as skipped.
inline bool has_device() {
  int devices = 0;
  cudaError_t const code = cudaGetDeviceCount(&devices);
  if (code == cudaSuccess && devices > 0) return true;
  static_cast<void>(cudaGetLastError());
  std::printf("skipped: no CUDA device (%s)\n", code == cudaSuccess ? "none found" : cudaGetErrorString(code));
  return false;
}

/// A stream of its own, so that nothing leans on the default stream.
class stream {
 public:
  stream() { check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  stream(stream const&) = delete;
  ~stream() { cudaStreamDestroy(stream_); }
  operator cudaStream_t() const { return stream_; }
  void wait() const { check_cuda(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

/// So many objects on the device, uninitialised or copied.
template <class T>
class device_array {
 public:
  explicit device_array(std::size_t count) : count_(count) {
    if (count > 0) check_cuda(cudaMalloc(&data_, count * sizeof(T)));
  }
  explicit device_array(std::vector<T> const& values) : device_array(values.size()) { copy_in(values); }
  device_array(device_array&& other) noexcept : data_(other.data_), count_(other.count_) { other.data_ = nullptr; }
  ~device_array() { cudaFree(data_); }

  T* data() const { return data_; }
  std::size_t size() const { return count_; }
  void copy_in(std::vector<T> const& values) {
    if (count_ > 0) check_cuda(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> copy_out() const {
    std::vector<T> values(count_);
    if (count_ > 0) check_cuda(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  T* data_ = nullptr;
  std::size_t count_ = 0;
};

template <>
struct reached<sy::backend::cuda> {
  static void* allocate(std::size_t bytes) {
    void* memory = nullptr;
    check_cuda(cudaMalloc(&memory, bytes));
    return memory;
  }
  static void release(void* memory) { cudaFree(memory); }
  static void copy_in(void* to, void const* from, std::size_t bytes) {
    check_cuda(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
  }
  static void copy_out(void* to, void const* from, std::size_t bytes) {
    check_cuda(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
  }
  static memory_space memory() { return {&allocate, &release, &copy_in, &copy_out}; }
  template <class Layer>
  static void forward(typename Layer::args const& args, sy::cpu_context const&) {
    stream own;
    Layer::forward(args, {.stream = own});
    own.wait();
  }
};

/// A layer of the CPU's list on the GPU.
template <class Layer>
using on_cuda = typename tested::moved<Layer, sy::backend::cuda>::type;

}  // namespace support
