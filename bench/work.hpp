#pragma once

#include <switchyard/costs.hpp>

#include <cstdint>

/// The least that the steps of a layer have to do.
namespace switchyard::bench {

/// The least that a step has to do.
struct work {
  double flops = 0.0, bytes = 0.0;

  friend work operator+(work a, work b) { return {a.flops + b.flops, a.bytes + b.bytes}; }
};

/// What routing does at least: the router product; router and tokens read once, routes written once.
template <class Layer>
work route_work(std::int64_t token_count) {
  constexpr double matrix = static_cast<double>(Layer::dims.experts) * Layer::dims.hidden;
  double const tokens = static_cast<double>(token_count);
  return {2.0 * tokens * matrix, sizeof(float) * matrix +
                                     sizeof(typename Layer::element) * tokens * Layer::dims.hidden +
                                     8.0 * tokens * Layer::dims.top_k};
}

/// What the whole layer does at least: `costs`, less the products of rows that were dropped.
template <class Layer>
work forward_work(std::int64_t tokens, std::int64_t rows, int experts_used) {
  constexpr expert_traits traits = Layer::expert_traits;
  constexpr double expert = (traits.input_projections() + 1.0) * Layer::dims.hidden * Layer::dims.intermediate;
  layer_costs const least = costs<Layer>(tokens, experts_used);
  double const dropped_pairs = static_cast<double>(tokens * Layer::dims.top_k - rows);
  return {least.flops - 2.0 * dropped_pairs * expert, least.bytes};
}

}  // namespace switchyard::bench
