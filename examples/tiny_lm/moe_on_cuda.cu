// The model's Mixture-of-Experts layers on a GPU. Everything else of the model stays on the host, so each call copies
// its tokens to the device and the result back.
#include <switchyard/switchyard.cuh>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moe.hpp"

namespace tiny_lm {
namespace {

using sy::cuda::check;

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

/// Null for nothing.
device_array<float> upload(std::vector<float> const& values) {
  if (values.empty()) return nullptr;
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
  device_array<float> router, feature_scale, norm, gate_proj, up_proj, down_proj, first_keys, second_keys, values;

  explicit device_weights(moe_weights const& host)
      : router(upload(host.router)),
        feature_scale(upload(host.feature_scale)),
        norm(upload(host.norm)),
        gate_proj(upload(host.gate_proj)),
        up_proj(upload(host.up_proj)),
        down_proj(upload(host.down_proj)),
        first_keys(upload(host.first_keys)),
        second_keys(upload(host.second_keys)),
        values(upload(host.values)) {}
};

/// A stream, and all memory that a call of at most `context` rows needs: nothing is allocated later.
template <class Kind>
class cuda_worker final : public moe_worker {
  using first = typename Kind::template first<sy::backend::cuda>;
  using others = typename Kind::template others<sy::backend::cuda>;

 public:
  /// `shared_router` is the model's, uploaded once for all blocks; null where each block has its own.
  cuda_worker(std::span<device_weights const> weights, float const* shared_router)
      : weights_(weights), shared_router_(shared_router) {}

  void forward(int block, float const* tokens, float const* residual, int rows, float* output,
               std::int64_t* used) override {
    copy(tokens_.get(), tokens, rows * hidden);
    if constexpr (sy::router::climbs<typename others::router::schedule>) copy(residual_.get(), residual, rows * hidden);
    if (block == 0) {
      enqueue<first>(block, rows);
    } else {
      enqueue<others>(block, rows);
    }
    std::int64_t load[experts];
    copy(output, output_.get(), rows * hidden);
    copy(load, load_.get(), experts);
    check("cudaStreamSynchronize", cudaStreamSynchronize(stream_.get()));
    for (int e = 0; e < experts; ++e) used[e] += load[e];
  }

 private:
  static constexpr int hidden = first::dims.hidden, experts = first::dims.experts;
  static constexpr std::size_t workspace_bytes =
      std::max(first::workspace_bytes(context), others::workspace_bytes(context));

  template <class Layer>
  void enqueue(int block, int rows) {
    device_weights const& w = weights_[block];
    typename Layer::args args = arguments<Layer>(
        {w.router ? w.router.get() : shared_router_, w.feature_scale.get(), w.norm.get(), w.gate_proj.get(),
         w.up_proj.get(), w.down_proj.get(), w.first_keys.get(), w.second_keys.get(), w.values.get()},
        tokens_.get(), residual_.get(), rows, output_.get(), {workspace_.get(), workspace_bytes}, chosen_.get());
    args.decisions.experts = chosen_.get();  // read before it is written
    args.decisions.load = load_.get();
    Layer::forward(args, {.stream = stream_.get()});
  }

  template <class T>
  void copy(T* to, T const* from, std::size_t count) {
    check("cudaMemcpyAsync", cudaMemcpyAsync(to, from, count * sizeof(T), cudaMemcpyDefault, stream_.get()));
  }

  std::span<device_weights const> weights_;
  float const* shared_router_;
  stream stream_ = new_stream();
  device_array<float> tokens_ = allocate<float>(context * hidden), output_ = allocate<float>(context * hidden);
  device_array<float> residual_ = allocate<float>(context * hidden);
  device_array<std::int64_t> load_ = allocate<std::int64_t>(experts);
  device_array<std::int32_t> chosen_ =
      allocate<std::int32_t>(context * first::dims.top_k * first::router::schedule::passes);
  device_array<std::byte> workspace_ = allocate<std::byte>(workspace_bytes);
};

template <class Kind>
class cuda_layers final : public moe_layers {
 public:
  cuda_layers(std::span<moe_weights const> weights, std::vector<float> const& shared_router)
      : weights_(weights.begin(), weights.end()), shared_router_(upload(shared_router)) {
    // The streams of the workers do not wait for the default stream, where a copy may still be under way.
    check("cudaDeviceSynchronize", cudaDeviceSynchronize());
  }
  std::string describe() const override { return sy::describe<typename Kind::template others<sy::backend::cuda>>(); }
  std::unique_ptr<moe_worker> worker() const override {
    return std::make_unique<cuda_worker<Kind>>(weights_, shared_router_.get());
  }

 private:
  std::vector<device_weights> weights_;
  device_array<float> shared_router_;
};

}  // namespace

std::unique_ptr<moe_layers> layers_on_cuda(std::string_view kind, std::span<moe_weights const> weights,
                                           std::vector<float> const& shared_router) {
  std::unique_ptr<moe_layers> result;
  kinds::with(kind, [&]<class Kind>() { result = std::make_unique<cuda_layers<Kind>>(weights, shared_router); });
  return result;
}

}  // namespace tiny_lm
