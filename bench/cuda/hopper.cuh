#pragma once

#include "gpu_backend.cuh"

#include <switchyard/switchyard.cuh>

/// A layer's parts on Hopper.
namespace switchyard::bench {

template <class Layer, class Backend>
struct moved_to;
template <shape Dims, class Router, class Capacity, class Expert, class From, class Element, class Backend>
struct moved_to<layer<Dims, Router, Capacity, Expert, From, Element>, Backend> {
  using type = layer<Dims, Router, Capacity, Expert, Backend, Element>;
};

/// The same layer on another backend.
template <class Layer, class Backend>
using on_backend = typename moved_to<Layer, Backend>::type;

/// The same arguments for it. The steps of a call leave the same in the workspace on both.
template <class Other, class Layer>
typename Other::args same_args(forward_args<Layer> const& from) {
  typename Other::args to;
  to.tokens = from.tokens;
  to.output = from.output;
  to.workspace = from.workspace;
  to.weights.router = from.weights.router;
  if constexpr (Other::expert_traits.gated) to.weights.gate_proj = from.weights.gate_proj;
  to.weights.up_proj = from.weights.up_proj;
  to.weights.down_proj = from.weights.down_proj;
  if constexpr (Other::expert_traits.bias) to.weights.bias = from.weights.bias;
  return to;
}

/// What `backend::hopper` hands to its products.
class hopper_parts : public backend::hopper {
 public:
  template <class Layer>
  static backend::device::both_products<typename Layer::element> products(forward_args<Layer> const& args) {
    return products_at(temporaries_of(args), args, args.tokens);
  }
};

/// Whether the products of a call of so many tokens are those of Hopper.
template <class Layer>
bool has_grouped_products(std::int64_t tokens) {
  return on_hopper && backend::device::rows_per_expert<Layer>(tokens) > default_hopper_tuning::of<Layer>().few_rows;
}

}  // namespace switchyard::bench
