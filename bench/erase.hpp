#pragma once

#include "erased.hpp"

#include <switchyard/core/workspace.hpp>
#include <switchyard/switchyard.hpp>

#include <cstdint>

/// Puts a layer behind function pointers: include this in a file that names layers.
namespace switchyard::bench {

/// Tokens to logits to expert ids and combine weights.
template <class Layer, class Element>
void run_route(layer_memory<Element>& memory) {
  auto&& [data, weights] = memory.next();
  data.route(weights, memory.where());
}

/// Expert ids to rows. There are no products, and what it reads comes from a cache, as after routing.
template <class Element>
void run_dispatch(layer_memory<Element>& memory) {
  memory.next().first.plan();
}

/// Rows to rows: the matrix products and the activation, for routed and shared experts.
template <class Layer, class Element>
void run_experts(layer_memory<Element>& memory) {
  using computing = cpu::experts_step<typename Layer::expert::computation>;
  auto&& [data, weights] = memory.next();
  carver split(memory.workspace().data());
  typename computing::template memory<Layer> const of_experts(split, data.tokens);
  forward_args<Layer> const args = args_of<Layer>(data.memory(weights));
  computing::template run<Layer>(args, memory.where(), args.tokens, data.the_plan(), data.weight.data(), of_experts);
}

/// The whole layer, as a user calls it.
template <class Layer, class Element>
void run_forward(layer_memory<Element>& memory) {
  auto&& [data, weights] = memory.next();
  call_memory<Element> call = data.memory(weights);
  call.output = memory.output();
  call.workspace = memory.workspace();
  Layer::forward(args_of<Layer>(call), memory.where());
}

/// What the experts do at least, shared ones included: products of the rows that were not dropped; weights of the
/// experts that were used; each token read and each row written once.
template <class Layer, class Element>
work experts_work(call_data<Element> const& data) {
  constexpr expert_traits traits = Layer::expert_traits;
  constexpr double hidden = Layer::dims.hidden;
  constexpr double expert = (traits.input_projections() + 1) * hidden * Layer::dims.intermediate;
  constexpr double shared = (traits.input_projections() + 1) * hidden * traits.shared_intermediate;
  double const rows = static_cast<double>(data.rows), tokens = static_cast<double>(data.tokens);
  return {2.0 * (rows * expert + tokens * shared),
          sizeof(Element) * (data.experts_used * expert + shared + tokens * hidden) + sizeof(float) * rows * hidden};
}

template <class Layer>
auto erase() {
  using element = typename Layer::element;
  cpu_layer<element> result;
  result.name = describe<Layer>();
  result.facts = facts_of<Layer>();
  if constexpr (makes_logits<typename Layer::router>) {
    result.run[route_step] = &run_route<Layer, element>;
    result.least[route_step] = [](call_data<element> const& data) { return route_work<Layer>(data.tokens); };
  }
  result.run[dispatch_step] = &run_dispatch<element>;
  result.least[dispatch_step] = [](call_data<element> const& data) {
    // Reads an id; writes a row, a pair and whether it is dropped.
    return work{0.0, static_cast<double>(data.tokens * Layer::dims.top_k) * 13.0};
  };
  result.run[experts_step] = &run_experts<Layer, element>;
  result.least[experts_step] = &experts_work<Layer, element>;
  result.run[forward_step] = &run_forward<Layer, element>;
  result.least[forward_step] = [](call_data<element> const& data) {
    return forward_work<Layer>(data.tokens, data.rows, data.experts_used);
  };
  return result;
}

/// Compiles layers for the table, at places from `first` on: for the initialiser of a static object.
template <class... Layers>
bool compile_layers(int first) {
  (compiled_layers().push_back({first++, erase<Layers>()}), ...);
  return true;
}

}  // namespace switchyard::bench
