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

/// The same layer on another backend. The steps of a call leave the same in the workspace on both.
template <class Layer, class Backend>
using on_backend = typename moved_to<Layer, Backend>::type;

/// Whether the products of a call of so many tokens are those of Hopper.
template <class Layer>
bool has_grouped_products(std::int64_t tokens) {
  return on_hopper && cuda::rows_per_expert<Layer>(tokens) > default_hopper_tuning::of<Layer>().few_rows;
}

}  // namespace switchyard::bench
