// The model's Mixture-of-Experts layers on a GPU. Everything else of the model stays on the host, so each call copies
// its tokens to the device and the result back.
#include <switchyard/switchyard.cuh>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "moe.hpp"

namespace tiny_lm {
namespace {

using sy::backend::device::check;

struct device_free {
  void operator()(void* memory) const { cudaFree(memory); }
};
template <class T>
using device_array = std::unique_ptr<T[], device_free>;

template <class T>
device_array<T> allocate(std::size_t count) {
  void* memory = nullptr;
  check("cudaMalloc", cudaMalloc(&memory, count * sizeof(T)));
  return device_array<T>(static_cast<T*>(memory));
}

device_array<float> upload(std::vector<float> const& values) {
  auto result = allocate<float>(values.size());
  check("cudaMemcpy", cudaMemcpy(result.get(), values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice));
  return result;
}

struct stream_destroy {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};
using stream = std::unique_ptr<CUstream_st, stream_destroy>;

stream new_stream() {
  cudaStream_t result = nullptr;
  check("cudaStreamCreateWithFlags", cudaStreamCreateWithFlags(&result, cudaStreamNonBlocking));
  return stream(result);
}

/// One block's weights on the device.
struct device_weights {
  device_array<float> router, gate_proj, up_proj, down_proj;

  explicit device_weights(moe_weights const& host)
      : router(upload(host.router)),
        gate_proj(upload(host.gate_proj)),
        up_proj(upload(host.up_proj)),
        down_proj(upload(host.down_proj)) {}
};

/// A stream, and all memory that a call of at most `context` rows needs: nothing is allocated later.
template <class Layer>
class cuda_worker final : public moe_worker {
 public:
  explicit cuda_worker(std::span<device_weights const> weights) : weights_(weights) {}

  void forward(int block, float const* tokens, int rows, float* output, std::int64_t* used) override {
    device_weights const& w = weights_[block];
    std::int64_t load[experts];
    copy(tokens_.get(), tokens, rows * hidden);
    Layer::forward({.tokens = Layer::rows(tokens_.get(), rows),
                    .weights = {.router = {.weight = w.router.get()},
                                .gate_proj = Layer::in_proj(w.gate_proj.get()),
                                .up_proj = Layer::in_proj(w.up_proj.get()),
                                .down_proj = Layer::out_proj(w.down_proj.get())},
                    .output = Layer::rows(output_.get(), rows),
                    .workspace = {workspace_.get(), workspace_bytes},
                    .decisions = {.load = load_.get()}},
                   {.stream = stream_.get()});
    copy(output, output_.get(), rows * hidden);
    copy(load, load_.get(), experts);
    check("cudaStreamSynchronize", cudaStreamSynchronize(stream_.get()));
    for (int e = 0; e < experts; ++e) used[e] += load[e];
  }

 private:
  static constexpr int hidden = Layer::dims.hidden, experts = Layer::dims.experts;
  static constexpr std::size_t workspace_bytes = Layer::workspace_bytes(context);

  template <class T>
  void copy(T* to, T const* from, std::size_t count) {
    check("cudaMemcpyAsync", cudaMemcpyAsync(to, from, count * sizeof(T), cudaMemcpyDefault, stream_.get()));
  }

  std::span<device_weights const> weights_;
  stream stream_ = new_stream();
  device_array<float> tokens_ = allocate<float>(context * hidden), output_ = allocate<float>(context * hidden);
  device_array<std::int64_t> load_ = allocate<std::int64_t>(experts);
  device_array<std::byte> workspace_ = allocate<std::byte>(workspace_bytes);
};

template <class Layer>
class cuda_layers final : public moe_layers {
 public:
  explicit cuda_layers(std::span<moe_weights const> weights) : weights_(weights.begin(), weights.end()) {
    // The streams of the workers do not wait for the default stream, where a copy may still be under way.
    check("cudaDeviceSynchronize", cudaDeviceSynchronize());
  }
  std::string describe() const override { return sy::describe<Layer>(); }
  std::unique_ptr<moe_worker> worker() const override { return std::make_unique<cuda_worker<Layer>>(weights_); }

 private:
  std::vector<device_weights> weights_;
};

}  // namespace

std::unique_ptr<moe_layers> layers_on_cuda(std::span<moe_weights const> weights) {
  return std::make_unique<cuda_layers<moe_layer_on<sy::backend::cuda>>>(weights);
}

}  // namespace tiny_lm
