#pragma once

#include <switchyard/backend/cuda/alignment.cuh>
#include <switchyard/backend/cuda/block_sums.cuh>
#include <switchyard/backend/cuda/launch.cuh>
#include <switchyard/backend/cuda/pass_size.cuh>
#include <switchyard/backend/cuda/route.cuh>
#include <switchyard/backend/cuda/steps.cuh>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/layer.hpp>
#include <switchyard/router/selectors.hpp>

#include <cstdint>

/// Step 1 of `backend::cuda` for routers whose logits are made of a token's direction.
///
/// nearest_centers: centers --square_centers--> their squares; tokens, centers --tokens_to_logits--> products --finish_products--> minus
/// distances --choose_experts--> routes.
/// mlp_selector: tokens, W_a --tokens_to_logits--> products --finish_products--> inner values; those, W_b --route_tokens--> routes.
namespace switchyard::cuda {

inline constexpr int selector_threads = 128;

/// The sum of the squares of a row, by a warp, on each of its lanes.
template <class Element>
__device__ double squares_by_warp(Element const* row, int count) {
  double sum = 0.0;
  for (int i = static_cast<int>(threadIdx.x) % 32; i < count; i += 32) {
    double const value = static_cast<double>(static_cast<float>(row[i]));
    sum += value * value;
  }
  return sum_over_warp(sum);
}

/// squares[e] = |c_e|^2, a warp per center.
template <int Threads>
__global__ void __launch_bounds__(Threads)
    square_centers(float const* centers, int experts, int hidden, float* squares) {
  int const e = static_cast<int>(blockIdx.x) * (Threads / 32) + static_cast<int>(threadIdx.x) / 32;
  if (e >= experts) return;
  double const sum = squares_by_warp(centers + std::int64_t{e} * hidden, hidden);
  if (threadIdx.x % 32 == 0) squares[e] = static_cast<float>(sum);
}

/// Products of a token and all rows of a router weight to minus distances (where there are squares of centers) or to inner values, in
/// place, a warp per token.
template <class Element, int Threads>
__global__ void __launch_bounds__(Threads)
    finish_products(view<Element const> const tokens, int experts, float const* center_squares, float* products) {
  std::int64_t const token = std::int64_t{blockIdx.x} * (Threads / 32) + static_cast<int>(threadIdx.x) / 32;
  if (token >= tokens.rows) return;
  float const inverse = selectors::inverse_length(squares_by_warp(tokens.row(token), static_cast<int>(tokens.columns)));
  float* const of_token = products + token * experts;
  for (int e = static_cast<int>(threadIdx.x) % 32; e < experts; e += 32) {
    of_token[e] = center_squares != nullptr ? selectors::minus_distance(of_token[e], inverse, center_squares[e])
                                            : selectors::hidden_value(of_token[e], inverse);
  }
}

/// What the steps of both routers have in common.
struct by_direction_step : route_step<router::from_logits> {
  using by_logits = route_step<router::from_logits>;

  template <class Layer>
  static constexpr std::int64_t block_tokens(std::int64_t) {
    return least_block_tokens;
  }

 protected:
  /// Enqueues the products of tokens and the first matrix, and what becomes of them, to `products`.
  template <class Layer>
  static void enqueue_products(forward_args<Layer> const& args, launch_queue const& queue,
                               typename layer_routing<Layer>::args to, float const* center_squares, float* products) {
    using routing = layer_routing<Layer>;
    using tile = route_tile<routing, 1>;
    check_tile<tile>();
    to.logits = products;
    launch(queue, "tokens_to_logits", tokens_to_logits<routing, 1>, to.results.chosen.token_blocks, tile::threads,
           tile::shared_bytes, to);
    launch(queue, "finish_products", finish_products<typename Layer::element, selector_threads>,
           divide_up(args.tokens.rows, selector_threads / 32), selector_threads, 0, args.tokens, Layer::all_experts,
           center_squares, products);
  }
};

/// Minus the distances to centers.
template <>
struct route_step<router::from_center_distances> : by_direction_step {
  template <class Layer>
  struct memory : by_logits::memory<Layer> {
    float* center_squares;  // [experts]

    constexpr memory(carver& from, std::int64_t tokens)
        : by_logits::memory<Layer>(from, tokens), center_squares(from.take<float>(Layer::all_experts)) {}
  };

  template <class Layer>
  static void enqueue(forward_args<Layer> const& args, launch_queue const& queue, memory<Layer> const& m,
                      route_results const& results, pass_size const* pass) {
    using routing = layer_routing<Layer>;
    using tile = route_tile<routing, 1>;
    constexpr int experts = Layer::all_experts;
    if (args.tokens.rows == 0) return;
    auto to = by_logits::template prepare<Layer>(args, queue, m, results, pass);
    if (to.logits == nullptr) to.logits = m.logits;
    launch(queue, "square_centers", square_centers<selector_threads>, divide_up(experts, selector_threads / 32),
           selector_threads, 0, to.weight, experts, Layer::dims.hidden, m.center_squares);
    enqueue_products(args, queue, to, m.center_squares, to.logits);
    launch(queue, "choose_experts", choose_experts<routing, 1>, to.results.chosen.token_blocks, tile::threads,
           tile::set_bytes, to, by_logits::template inputs_of<Layer>(args));
  }
};

/// The logits of a network of two matrices.
template <>
struct route_step<router::from_selector_network> : by_direction_step {
  template <class Layer>
  struct memory : by_logits::memory<Layer> {
    float* inner;  // [tokens, experts], what the second matrix sees

    constexpr memory(carver& from, std::int64_t tokens)
        : by_logits::memory<Layer>(from, tokens), inner(from.take<float>(tokens * Layer::all_experts)) {}
  };

  template <class Layer>
  static void enqueue(forward_args<Layer> const& args, launch_queue const& queue, memory<Layer> const& m,
                      route_results const& results, pass_size const* pass) {
    using first = layer_routing<Layer>;
    using second =
        routing_of<float, typename Layer::router, Layer::all_experts, Layer::dims.top_k, typename first::inputs>;
    using tile = route_tile<second, 1>;
    if (args.tokens.rows == 0) return;
    auto const to = by_logits::template prepare<Layer>(args, queue, m, results, pass);
    enqueue_products(args, queue, to, nullptr, m.inner);
    check_tile<tile>();
    view<float const> const inner{m.inner, args.tokens.rows, Layer::all_experts};
    float const* const weight = router::weights_of(args).output_weight;
    typename second::args const seen{.tokens = inner,
                                     .pass = pass,
                                     .weight = weight,
                                     .router = to.router,
                                     .active = args.active,
                                     .aligned_tokens = is_aligned(inner),
                                     .aligned_router = is_aligned(weight, inner.columns),
                                     .features = {},
                                     .inverse_lengths = nullptr,
                                     .logits = to.logits,
                                     .results = results};
    launch(queue, "route_tokens", route_tokens<second, 1>, results.chosen.token_blocks, tile::threads,
           tile::shared_bytes, seen, by_logits::template inputs_of<Layer>(args));
  }
};

}  // namespace switchyard::cuda
