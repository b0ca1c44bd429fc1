#pragma once

#include "erased.hpp"
#include "hopper.cuh"
#include "layers.hpp"

#include <switchyard/switchyard.cuh>

#include <string>
#include <tuple>
#include <type_traits>

/// Puts a layer behind function pointers: include this in a file that names layers.
namespace switchyard::bench {

constexpr nonlinearity nonlinearity_of(relu) { return nonlinearity::relu; }
constexpr nonlinearity nonlinearity_of(silu) { return nonlinearity::silu; }
constexpr nonlinearity nonlinearity_of(clamped_swiglu<>) { return nonlinearity::clamped_swiglu; }

template <class Layer>
void enqueue_whole(gpu_memory const& memory, cudaStream_t stream) {
  Layer::forward(args_of<Layer>(memory), {.stream = stream});
}

/// With the whole layer alone.
template <class Layer>
gpu_layer erase_whole() {
  gpu_layer result;
  result.name = describe<Layer>();
  result.dims = Layer::dims;
  result.expert = Layer::expert_traits;
  result.router_bias = Layer::router_traits.bias;
  result.activation = nonlinearity_of(typename Layer::expert::activation{});
  result.workspace_bytes = &Layer::workspace_bytes;
  result.costs = [](std::int64_t tokens, double experts_used) { return costs<Layer>(tokens, experts_used); };
  result.enqueue[whole_step] = &enqueue_whole<Layer>;
  return result;
}

/// With the steps that are needed to plan a call.
template <class Layer>
gpu_layer erase_planning() {
  using backend = typename Layer::backend;
  static_assert(Layer::dims.experts <= Layer::dims.hidden, "tokens name their experts by their first features");
  static_assert(Layer::expert_traits.shared_intermediate == 0 &&
                    Layer::expert_traits.scale_numerator == Layer::expert_traits.scale_denominator,
                "the peers have no shared expert and no constant factor");
  static_assert(makes_logits<typename Layer::router> && Layer::router_traits.owner == router_owner::layer &&
                    !Layer::router_traits.weighs_input && !Layer::router_traits.correction_bias,
                "the peers and the check take a layer's own, plain router");
  gpu_layer result = erase_whole<Layer>();
  result.enqueue[route_step] = [](gpu_memory const& m, cudaStream_t stream) {
    backend::template route<Layer>(args_of<Layer>(m), {.stream = stream});
  };
  result.enqueue[plan_step] = [](gpu_memory const& m, cudaStream_t stream) {
    backend::template plan<Layer>(args_of<Layer>(m), {.stream = stream});
  };
  result.plan_of = [](gpu_memory const& m) { return backend::template plan_of<Layer>(args_of<Layer>(m)); };
  result.combine_weights_of = [](gpu_memory const& m) -> float const* {
    return backend::template routes_of<Layer>(args_of<Layer>(m)).weights;
  };
  return result;
}

/// With all steps.
template <class Layer>
gpu_layer erase() {
  using backend = typename Layer::backend;
  gpu_layer result = erase_planning<Layer>();
  result.route_work = &route_work<Layer>;
  result.forward_work = &forward_work<Layer>;
  result.has_grouped_products = &has_grouped_products<Layer>;
  result.enqueue[experts_step] = [](gpu_memory const& m, cudaStream_t stream) {
    backend::template experts<Layer>(args_of<Layer>(m), {.stream = stream});
  };
  if constexpr (on_hopper) {
    using products = switchyard::hopper::tuned_products<default_hopper_tuning>;
    result.enqueue[in_step] = [](gpu_memory const& m, cudaStream_t stream) {
      products::enqueue_in<Layer>(cuda_context{.stream = stream},
                                  switchyard::backend::hopper::products_of_call(args_of<Layer>(m)).in);
    };
    result.enqueue[out_step] = [](gpu_memory const& m, cudaStream_t stream) {
      products::enqueue_out<Layer>(cuda_context{.stream = stream},
                                   switchyard::backend::hopper::products_of_call(args_of<Layer>(m)).out);
    };
    result.enqueue[cuda_step] = [](gpu_memory const& m, cudaStream_t stream) {
      using other = on_backend<Layer, switchyard::backend::cuda>;
      switchyard::backend::cuda::experts<other>(args_of<other>(m), {.stream = stream});
    };
  }
  return result;
}

/// Compiles layers of `gpu_layers` by their places: for the initialiser of a static object.
template <std::size_t... Places>
bool compile_layers() {
  (compiled_layers().emplace_back(Places, erase<std::tuple_element_t<Places, gpu_layers<gpu_backend>>>()), ...);
  return true;
}

}  // namespace switchyard::bench
