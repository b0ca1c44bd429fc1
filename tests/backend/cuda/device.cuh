#pragma once

#include <switchyard/switchyard.cuh>

#include <cstdio>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "layers.hpp"
#include "support/any_layer.hpp"
#include "support/compile.hpp"

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

/// The same for a Hopper GPU, which is what tests of `backend::hopper` are compiled for.
inline bool has_hopper() {
  if (!has_device()) return false;
  int major = 0;
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  if (major != 9) std::printf("skipped: no CUDA device of compute capability 9.0\n");
  return major == 9;
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

/// Calls a layer on a stream of its own and waits.
template <class Layer>
void forward_and_wait(typename Layer::args const& args) {
  stream own;
  Layer::forward(args, {.stream = own});
  own.wait();
}

/// So many objects on the device, uninitialised or copied.
template <class T>
class device_array {
 public:
  explicit device_array(std::size_t count) : count_(count) {
    if (count > 0) check_cuda(cudaMalloc(&data_, count * sizeof(T)));
  }
  device_array(std::vector<T> const& values) : device_array(values.size()) { copy_in(values); }
  device_array() = default;
  device_array(device_array&& other) noexcept { *this = std::move(other); }
  device_array& operator=(device_array&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
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

/// How `run` calls a layer on the GPU.
enum class call_mode {
  whole,    ///< `forward`
  steps,    ///< `route`, `plan` and `experts`, and the plan compared with the CPU's
  captured  ///< `forward` captured in a graph that is replayed with other tokens, then with the right ones
};
inline call_mode& current_call_mode() {
  static call_mode mode = call_mode::whole;
  return mode;
}

/// Runs a layer step by step. Throws when the plan is not the one that the CPU makes of the same routes.
template <class Layer>
void forward_in_steps(typename Layer::args const& args, cudaStream_t on) {
  if constexpr (!std::is_same_v<typename decltype(sy::schedule_of<Layer>())::type,
                                sy::router::one_pass>) {  // no steps, or no plan
    Layer::forward(args, {.stream = on});
    return;
  } else {
    constexpr sy::shape dims = Layer::dims;
    using gpu = typename Layer::backend;
    gpu::template route<Layer>(args, {.stream = on});
    gpu::template plan<Layer>(args, {.stream = on});
    check_cuda(cudaStreamSynchronize(on));

    std::int64_t const tokens = args.tokens.rows, pairs = tokens * dims.top_k;
    auto const copy = [](auto const* from, std::int64_t count) {
      std::vector<std::remove_cvref_t<decltype(*from)>> to(count);
      if (count > 0) check_cuda(cudaMemcpy(to.data(), from, count * sizeof(*from), cudaMemcpyDeviceToHost));
      return to;
    };
    if constexpr (Layer::capacity_traits.order != sy::queue::priority) {
      auto const experts = copy(gpu::template routes_of<Layer>(args).experts, pairs);
      auto weights = copy(gpu::template routes_of<Layer>(args).weights, pairs);
      std::vector<std::int32_t> used(Layer::all_experts), offsets(dims.experts + 1), pair_of(pairs), row_of(pairs);
      std::vector<std::int64_t> load(Layer::all_experts);
      std::vector<std::uint8_t> dropped(pairs);
      sy::dispatch::make_plan<typename Layer::capacity, dims, Layer::all_experts>(
          {.tokens = tokens,
           .tokens_per_group = args.tokens_per_group,
           .experts = experts.data(),
           .weights = weights.data(),
           .dropped = dropped.data(),
           .load = load.data(),
           .used = used.data()},
          {offsets.data(), pair_of.data(), row_of.data()});
      pair_of.resize(offsets[dims.experts]);
      sy::dispatch_plan const plan = gpu::template plan_of<Layer>(args);
      if (copy(plan.offsets, dims.experts + 1) != offsets) throw std::runtime_error("other offsets than the CPU's");
      if (copy(plan.pair_of, offsets[dims.experts]) != pair_of) throw std::runtime_error("other pairs than the CPU's");
      if (copy(plan.row_of, pairs) != row_of) throw std::runtime_error("other rows than the CPU's");
    }
    gpu::template experts<Layer>(args, {.stream = on});
  }
}

/// Captures `forward` in a graph. Throws when it has another number of kernels than the layer says.
template <class Layer>
void forward_captured(typename Layer::args const& args, cudaStream_t on) {
  cudaGraph_t graph = nullptr;
  // Any call that allocates or waits ends a capture of this mode with an error.
  check_cuda(cudaStreamBeginCapture(on, cudaStreamCaptureModeGlobal));
  Layer::forward(args, {.stream = on});
  check_cuda(cudaStreamEndCapture(on, &graph));
  std::size_t nodes = 0;
  check_cuda(cudaGraphGetNodes(graph, nullptr, &nodes));
  if (nodes != static_cast<std::size_t>(Layer::backend::template launches<Layer>(args))) {
    throw std::runtime_error("a graph of " + std::to_string(nodes) + " nodes");
  }
  cudaGraphExec_t replay = nullptr;
  check_cuda(cudaGraphInstantiate(&replay, graph, 0));

  std::size_t const bytes = args.tokens.rows * args.tokens.row_stride * sizeof(typename Layer::element);
  std::size_t const whole =
      bytes == 0 ? 0 : bytes - (args.tokens.row_stride - args.tokens.columns) * sizeof(typename Layer::element);
  std::vector<std::byte> tokens(whole);
  void* const first = const_cast<typename Layer::element*>(args.tokens.data);
  if (whole > 0) {
    check_cuda(cudaMemcpy(tokens.data(), first, whole, cudaMemcpyDeviceToHost));
    check_cuda(cudaMemset(first, 0, whole));
    check_cuda(cudaGraphLaunch(replay, on));
    check_cuda(cudaStreamSynchronize(on));
    check_cuda(cudaMemcpy(first, tokens.data(), whole, cudaMemcpyHostToDevice));
  }
  check_cuda(cudaGraphLaunch(replay, on));
  check_cuda(cudaStreamSynchronize(on));
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
}

/// A backend of the GPU, for `reached`.
struct reached_gpu {
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
    switch (current_call_mode()) {
      case call_mode::whole: Layer::forward(args, {.stream = own}); break;
      case call_mode::steps: forward_in_steps<Layer>(args, own); break;
      case call_mode::captured: forward_captured<Layer>(args, own); break;
    }
    own.wait();
  }
};

template <>
struct reached<sy::backend::cuda> : reached_gpu {};
template <>
struct reached<sy::backend::hopper> : reached_gpu {};
template <class Tuning>
struct reached<sy::backend::hopper_with<Tuning>> : reached_gpu {};

/// A layer of the CPU's list on the GPU.
template <class Layer>
using on_cuda = typename tested::moved<Layer, sy::backend::cuda>::type;

}  // namespace support
