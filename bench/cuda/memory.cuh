#pragma once

#include "../skew.hpp"
#include "device.cuh"

#include <switchyard/switchyard.cuh>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

/// Weights and tokens in device memory, made there: random numbers for gigabytes of weights take the host minutes.
namespace switchyard::bench {

template <class T>
__global__ void fill_noise(T* to, std::int64_t count, std::uint32_t seed, float scale) {
  for (std::int64_t i = thread_index(); i < count; i += thread_count()) to[i] = T(scale * noise(i, seed));
}

/// `count` seeded values of variance `deviation` squared.
template <class T>
device_memory<T> device_noise(std::int64_t count, std::uint32_t seed, float deviation) {
  device_memory<T> result(count);
  if (count > 0) {
    fill_noise<<<blocks_for(count, 256), 256>>>(result.data(), count, seed, deviation * 1.7320508f);
    check_cuda(cudaGetLastError());
  }
  return result;
}

/// Expert e reads feature e, and a little of everything.
template <class Layer>
__global__ void fill_router(float* to) {
  constexpr int hidden = Layer::dims.hidden;
  constexpr std::int64_t count = std::int64_t{Layer::dims.experts} * hidden;
  float const scale = 0.1f / sqrtf(static_cast<float>(hidden));
  for (std::int64_t i = thread_index(); i < count; i += thread_count()) {
    to[i] = (i % hidden == i / hidden ? 1.0f : 0.0f) + scale * noise(i, 77);
  }
}

/// The first features of a token name its experts, the others are noise.
template <class Layer>
__global__ void fill_tokens(typename Layer::element* to, std::int64_t tokens, skew spread, std::uint32_t set) {
  using element = typename Layer::element;
  constexpr shape dims = Layer::dims;
  for (std::int64_t i = thread_index(); i < tokens * dims.hidden; i += thread_count()) {
    std::int64_t const token = i / dims.hidden;
    int const feature = static_cast<int>(i % dims.hidden);
    to[i] = element(feature < dims.experts ? naming_feature(token, feature, dims.experts, dims.top_k, spread, set)
                                           : 1.7320508f * noise(i, 1000 + set));
  }
}

/// One copy of a layer's weights. Each expert's gate and up projections stand together, as frameworks store them and as
/// one product of a peer needs them.
template <class Layer>
class device_weights {
 public:
  using element = typename Layer::element;
  static constexpr shape dims = Layer::dims;
  static constexpr expert_traits traits = Layer::expert_traits;
  /// Features of the products in: gate and up, or up.
  static constexpr int in_features = traits.input_projections() * dims.intermediate;

  explicit device_weights(std::uint32_t seed)
      : in(device_noise<element>(std::int64_t{dims.experts} * in_features * dims.hidden, 16 * seed + 1,
                                 1.0f / std::sqrt(static_cast<float>(dims.hidden)))),
        out(device_noise<element>(std::int64_t{dims.experts} * dims.hidden * dims.intermediate, 16 * seed + 2,
                                  1.0f / std::sqrt(static_cast<float>(dims.intermediate)))),
        in_bias(device_noise<element>(traits.bias ? dims.experts * in_features : 0, 16 * seed + 3, 0.1f)),
        out_bias(device_noise<element>(traits.bias ? dims.experts * dims.hidden : 0, 16 * seed + 4, 0.1f)),
        router(std::int64_t{dims.experts} * dims.hidden),
        router_bias(device_noise<float>(dims.experts, 16 * seed + 5, 0.1f)) {
    static_assert(dims.experts <= dims.hidden, "tokens name their experts by their first features");
    static_assert(traits.shared_intermediate == 0 && traits.scale_numerator == traits.scale_denominator,
                  "the peers have no shared expert and no constant factor");
    static_assert(!Layer::router_traits.precomputed && Layer::router_traits.gate == gate_owner::layer &&
                      !Layer::router_traits.weighs_input && !Layer::router_traits.correction_bias,
                  "the peers and the check take a layer's own, plain router");
    fill_router<Layer><<<blocks_for(router.size(), 256), 256>>>(router.data());
    check_cuda(cudaGetLastError());
  }

  typename Layer::weights weights() const {
    typename Layer::weights result;
    result.router = {router.data(), router_bias.data(), nullptr};
    result.down_proj = Layer::out_proj(out.data());
    if constexpr (traits.gated) {
      auto const views = Layer::split_gate_up(in.data());
      result.gate_proj = views.gate;
      result.up_proj = views.up;
    } else {
      result.up_proj = Layer::in_proj(in.data());
    }
    if constexpr (traits.bias) {
      result.bias.up = {in_bias.data() + in_features - dims.intermediate, in_features, 1};
      if constexpr (traits.gated) result.bias.gate = {in_bias.data(), in_features, 1};
      result.bias.down = Layer::out_bias(out_bias.data());
    }
    return result;
  }

  device_memory<element> in;        // [experts, in_features, hidden]
  device_memory<element> out;       // [experts, hidden, intermediate]
  device_memory<element> in_bias;   // [experts, in_features], where experts have biases
  device_memory<element> out_bias;  // [experts, hidden]
  device_memory<float> router, router_bias;
};

/// One token set with a workspace of its own, so that the steps of a call find what the steps before them left.
template <class Layer>
class device_call {
 public:
  using element = typename Layer::element;
  static constexpr shape dims = Layer::dims;

  device_call(std::int64_t tokens, skew spread, std::uint32_t set, device_weights<Layer> const& from)
      : input(tokens * dims.hidden),
        workspace(static_cast<std::int64_t>(Layer::workspace_bytes(tokens))),
        weights(&from),
        tokens_(tokens) {
    fill_tokens<Layer><<<blocks_for(input.size(), 256), 256>>>(input.data(), tokens, spread, set);
    check_cuda(cudaGetLastError());
    check_cuda(cudaMemset(workspace.data(), 0xff, workspace.bytes()));
  }

  typename Layer::args args(element* output) const {
    typename Layer::args result;
    result.tokens = Layer::rows(static_cast<element const*>(input.data()), tokens_);
    result.weights = weights->weights();
    result.output = Layer::rows(output, tokens_);
    result.workspace = {workspace.data(), workspace.bytes()};
    return result;
  }

  /// Routes and plans on the GPU, and keeps what the host and the peers need to know of it.
  void plan(element* output, cudaStream_t stream) {
    auto const a = args(output);
    Layer::backend::template route<Layer>(a, {.stream = stream});
    Layer::backend::template plan<Layer>(a, {.stream = stream});
    check_cuda(cudaStreamSynchronize(stream));
    auto const plan = [&] { return copied(Layer::backend::template plan_of<Layer>(a).offsets, dims.experts + 1); };
    offsets = plan();
    // The bench repeats the step alone.
    Layer::backend::template plan<Layer>(a, {.stream = stream});
    check_cuda(cudaStreamSynchronize(stream));
    if (plan() != offsets) throw std::runtime_error("plan changes the routes that it reads");
    rows = offsets[dims.experts];
    experts_used = 0;
    for (int e = 0; e < dims.experts; ++e) experts_used += offsets[e + 1] > offsets[e];
  }

  device_memory<element> input;  // [tokens, hidden]
  device_memory<std::byte> workspace;
  device_weights<Layer> const* weights;
  std::vector<std::int32_t> offsets;  // [experts + 1], see dispatch_plan
  std::int64_t rows = 0;              // pairs that were not dropped
  int experts_used = 0;               // experts with at least one row

 private:
  std::int64_t tokens_;
};

}  // namespace switchyard::bench
