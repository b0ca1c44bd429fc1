#pragma once

#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/route.hpp>
#include <switchyard/backend/cpu/steps.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/layer.hpp>
#include <switchyard/router/selectors.hpp>

#include <algorithm>
#include <cstdint>

/// Step 1 of `backend::cpu` for routers whose logits are made of a token's direction.
namespace switchyard::cpu {

/// The sum of the squares of a row, in double and always in the same order.
template <class Element>
double sum_of_squares(Element const* row, int count) {
  constexpr int together = 8;
  double sums[together] = {}, all = 0.0;
  int i = 0;
  for (; i + together <= count; i += together) {
    for (int j = 0; j < together; ++j) {
      double const value = static_cast<double>(static_cast<float>(row[i + j]));
      sums[j] += value * value;
    }
  }
  for (double sum : sums) all += sum;
  for (; i < count; ++i) {
    double const value = static_cast<double>(static_cast<float>(row[i]));
    all += value * value;
  }
  return all;
}

/// Calls `make(products of a token, 1 / |token|)` for every token.
template <class Element, class Make>
void for_directions(view<Element const> const& tokens, int hidden, int experts, cpu_context const& context,
                    float* products, Make const& make) {
  parallel_for(context, divide_up(tokens.rows, route_tokens), [&](std::int64_t item) {
    std::int64_t const end = std::min(tokens.rows, (item + 1) * route_tokens);
    for (std::int64_t t = item * route_tokens; t < end; ++t) {
      make(products + t * experts, selectors::inverse_length(sum_of_squares(tokens.row(t), hidden)));
    }
  });
}

/// Minus the distances to centers.
template <>
struct route_step<router::from_center_distances> : route_step<router::from_logits> {
  using by_logits = route_step<router::from_logits>;

  template <class Layer>
  struct memory : by_logits::memory<Layer> {
    float* center_squares;  // [experts]

    constexpr memory(carver& from, std::int64_t tokens)
        : by_logits::memory<Layer>(from, tokens), center_squares(from.take<float>(Layer::all_experts)) {}
  };

  template <class Layer>
  static void run(forward_args<Layer> const& args, cpu_context const& context, memory<Layer> const& m, routes const& to,
                  names const& called) {
    constexpr int hidden = Layer::dims.hidden, experts = Layer::all_experts;
    router_weights const router = router::weights_of(args);
    for (int e = 0; e < experts; ++e) {
      m.center_squares[e] = static_cast<float>(sum_of_squares(router.weight + std::int64_t{e} * hidden, hidden));
    }
    by_logits::template logits_of<Layer>(args, context, m);
    for_directions(args.tokens, hidden, experts, context, m.logits, [&](float* of_token, float inverse) {
      for (int e = 0; e < experts; ++e) {
        of_token[e] = selectors::minus_distance(of_token[e], inverse, m.center_squares[e]);
      }
    });
    by_logits::template choose<Layer>(args, context, m, router, to, called);
  }
};

/// The logits of a network of two matrices.
template <>
struct route_step<router::from_selector_network> : route_step<router::from_logits> {
  using by_logits = route_step<router::from_logits>;

  template <class Layer>
  struct memory : by_logits::memory<Layer> {
    float* inner;  // [tokens, experts], what the second matrix sees

    constexpr memory(carver& from, std::int64_t tokens)
        : by_logits::memory<Layer>(from, tokens), inner(from.take<float>(tokens * Layer::all_experts)) {}
  };

  template <class Layer>
  static void run(forward_args<Layer> const& args, cpu_context const& context, memory<Layer> const& m, routes const& to,
                  names const& called) {
    constexpr int hidden = Layer::dims.hidden, experts = Layer::all_experts;
    auto const& w = router::weights_of(args);
    make_logits(router_product<typename Layer::element, float>{args.tokens, hidden, experts, w.weight}, context,
                m.inner);
    for_directions(args.tokens, hidden, experts, context, m.inner, [&](float* of_token, float inverse) {
      for (int e = 0; e < experts; ++e) of_token[e] = selectors::hidden_value(of_token[e], inverse);
    });
    view<float const> const inner{m.inner, args.tokens.rows, experts};
    make_logits(router_product<float, float>{inner, experts, experts, w.output_weight}, context, m.logits);
    by_logits::template choose<Layer>(args, context, m, w, to, called);
  }
};

}  // namespace switchyard::cpu
