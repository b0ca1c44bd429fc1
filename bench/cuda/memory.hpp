#pragma once

#include "../skew.hpp"
#include "device.hpp"
#include "erased.hpp"
#include "kernels.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

/// Weights and tokens in device memory, made there: random numbers for gigabytes of weights take the host minutes.
namespace switchyard::bench {

/// `count` seeded values of variance `deviation` squared.
template <class T>
device_memory<T> device_noise(std::int64_t count, std::uint32_t seed, float deviation) {
  device_memory<T> result(count);
  if (count > 0) fill_noise(result.data(), count, seed, deviation * 1.7320508f);
  return result;
}

/// One copy of a layer's weights. Each expert's gate and up projections stand together, as frameworks store them and as
/// one product of a peer needs them.
class device_weights {
 public:
  device_weights(gpu_layer const& of, std::uint32_t seed)
      : in(projections(of, of.in_features(), of.dims.hidden, 16 * seed + 1)),
        out(projections(of, of.dims.hidden, of.dims.intermediate, 16 * seed + 2)),
        in_bias(device_noise<bfloat16>(of.expert.bias ? of.dims.experts * of.in_features() : 0, 16 * seed + 3, 0.1f)),
        out_bias(device_noise<bfloat16>(of.expert.bias ? of.dims.experts * of.dims.hidden : 0, 16 * seed + 4, 0.1f)),
        router(std::int64_t{of.dims.experts} * of.dims.hidden),
        router_bias(device_noise<float>(of.dims.experts, 16 * seed + 5, 0.1f)) {
    fill_router(router.data(), of.dims);
  }

  device_memory<bfloat16> in;        // [experts, in_features, hidden]
  device_memory<bfloat16> out;       // [experts, hidden, intermediate]
  device_memory<bfloat16> in_bias;   // [experts, in_features], where experts have biases
  device_memory<bfloat16> out_bias;  // [experts, hidden]
  device_memory<float> router, router_bias;

 private:
  static device_memory<bfloat16> projections(gpu_layer const& of, int features, int depth, std::uint32_t seed) {
    return device_noise<bfloat16>(std::int64_t{of.dims.experts} * features * depth, seed,
                                  1.0f / std::sqrt(static_cast<float>(depth)));
  }
};

/// The weights for a call: pointers to the tensors of `device_weights`, or to copies of them.
inline void set_weights(gpu_memory& to, gpu_layer const& of, bfloat16 const* in, bfloat16 const* out,
                        bfloat16 const* in_bias, bfloat16 const* out_bias, float const* router,
                        float const* router_bias) {
  int const intermediate = of.dims.intermediate, hidden = of.dims.hidden;
  to.router = {router, router_bias, nullptr};
  to.down_proj = weight_view<bfloat16>::packed(out, hidden, intermediate);
  if (of.expert.gated) {
    auto const views = split_gate_up(in, intermediate, hidden, gate_up_order::concatenated, storage::output_major);
    to.gate_proj = views.gate;
    to.up_proj = views.up;
  } else {
    to.up_proj = weight_view<bfloat16>::packed(in, intermediate, hidden);
  }
  if (of.expert.bias) {
    to.bias.gate = {in_bias, of.in_features(), 1};
    to.bias.up = {in_bias + of.in_features() - intermediate, of.in_features(), 1};
    to.bias.down = bias_view<bfloat16>::packed(out_bias, hidden);
  }
}

/// One token set with a workspace of its own, so that the steps of a call find what the steps before them left.
class device_call {
 public:
  device_call(gpu_layer const& layer, std::int64_t token_count, skew spread, std::uint32_t set,
              device_weights const& from, std::size_t workspace_bytes = 0)
      : of(&layer),
        weights(&from),
        tokens(token_count),
        input(tokens * of->dims.hidden),
        workspace(static_cast<std::int64_t>(workspace_bytes > 0 ? workspace_bytes : of->workspace_bytes(tokens))) {
    fill_tokens(input.data(), tokens, of->dims, spread, set);
    check_cuda(cudaMemset(workspace.data(), 0xff, workspace.bytes()));
  }

  gpu_memory memory(bfloat16* output) const {
    gpu_memory result;
    result.tokens = tokens;
    result.input = input.data();
    result.output = output;
    result.workspace = {workspace.data(), workspace.bytes()};
    set_weights(result, *of, weights->in.data(), weights->out.data(), weights->in_bias.data(), weights->out_bias.data(),
                weights->router.data(), weights->router_bias.data());
    return result;
  }

  /// Routes and plans on the GPU, and keeps what the host and the peers need to know of it.
  void plan(bfloat16* output, cudaStream_t stream) {
    gpu_memory const m = memory(output);
    of->enqueue[route_step](m, stream);
    of->enqueue[plan_step](m, stream);
    check_cuda(cudaStreamSynchronize(stream));
    auto const planned = [&] { return copied(of->plan_of(m).offsets, of->dims.experts + 1); };
    offsets = planned();
    // The bench repeats the step alone.
    of->enqueue[plan_step](m, stream);
    check_cuda(cudaStreamSynchronize(stream));
    if (planned() != offsets) throw std::runtime_error("plan changes the routes that it reads");
    rows = offsets[of->dims.experts];
    experts_used = 0;
    for (int e = 0; e < of->dims.experts; ++e) experts_used += offsets[e + 1] > offsets[e];
  }

  gpu_layer const* of;
  device_weights const* weights;
  std::int64_t tokens;
  device_memory<bfloat16> input;  // [tokens, hidden]
  device_memory<std::byte> workspace;
  std::vector<std::int32_t> offsets;  // [experts + 1], see dispatch_plan
  std::int64_t rows = 0;              // pairs that were not dropped
  int experts_used = 0;               // experts with at least one row
};

}  // namespace switchyard::bench
