#pragma once

#include <switchyard/backend/cpu/combine.hpp>
#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/experts.hpp>
#include <switchyard/backend/cpu/kernels.hpp>
#include <switchyard/backend/cpu/route.hpp>
#include <switchyard/backend/cpu/steps.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/dispatch/plan.hpp>
#include <switchyard/layer.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

namespace switchyard {

/// A call's routes in its workspace.
struct cpu_routes {
  std::int32_t const* experts;  ///< [tokens, top_k]; -1 for a pair that goes nowhere
  float const* weights;         ///< [tokens, top_k]
};

namespace cpu {

/// A layer that runs over its tokens once: route, plan, experts with combine.
template <>
struct schedule_step<router::one_pass> {
  template <class Layer>
  using routing = route_step<typename Layer::router::source>;
  template <class Layer>
  using computing = experts_step<computation_of<Layer>>;

  template <class Layer>
  struct memory {
    typename routing<Layer>::template memory<Layer> of_routing;
    routes routed;
    std::uint8_t* dropped;           // [tokens, top_k]
    std::int32_t* order = nullptr;   // [tokens]
    std::int64_t* load;              // [all experts]
    std::int32_t *used, *offsets;    // [all experts], [experts + 1]
    std::int32_t *pair_of, *row_of;  // [tokens * top_k]
    typename computing<Layer>::template memory<Layer> of_experts;

    constexpr memory(carver& from, std::int64_t tokens)
        : of_routing(from, tokens),
          routed{from.take<std::int32_t>(tokens * Layer::dims.top_k), from.take<float>(tokens * Layer::dims.top_k),
                 from.take<float>(tokens)},
          dropped(from.take<std::uint8_t>(tokens * Layer::dims.top_k)),
          order(Layer::capacity_traits.order == queue::priority ? from.take<std::int32_t>(tokens) : nullptr),
          load(from.take<std::int64_t>(Layer::all_experts)),
          used(from.take<std::int32_t>(Layer::all_experts)),
          offsets(from.take<std::int32_t>(Layer::dims.experts + 1)),
          pair_of(from.take<std::int32_t>(tokens * Layer::dims.top_k)),
          row_of(from.take<std::int32_t>(tokens * Layer::dims.top_k)),
          of_experts(from, tokens) {}

    dispatch_plan plan() const { return {offsets, pair_of, row_of}; }
  };

  template <class Layer>
  static void run(forward_args<Layer> const& args, cpu_context const& context, memory<Layer> const& m,
                  names const& called = {}) {
    route(args, context, m, called);
    plan(args, m);
    experts(args, context, m, tokens_of_experts(args, m));
  }

  /// Tokens to experts and weights. Nothing can fail after it, and nothing but workspace is written before it has succeeded.
  template <class Layer>
  static void route(forward_args<Layer> const& args, cpu_context const& context, memory<Layer> const& m,
                    names const& called = {}) {
    if constexpr (requires { computing<Layer>::template check<Layer>(args, context); }) {
      computing<Layer>::template check<Layer>(args, context);
    }
    routing<Layer>::template run<Layer>(args, context, m.of_routing, m.routed, called);
    routing<Layer>::template report<Layer>(args, m.of_routing);
  }

  /// Routes to the rows of each expert.
  template <class Layer>
  static void plan(forward_args<Layer> const& args, memory<Layer> const& m) {
    constexpr shape dims = Layer::dims;
    std::int64_t const tokens = args.tokens.rows, pairs = tokens * dims.top_k;
    dispatch::make_plan<typename Layer::capacity, dims, Layer::all_experts>({.tokens = tokens,
                                                                             .tokens_per_group = args.tokens_per_group,
                                                                             .active = args.active,
                                                                             .experts = m.routed.experts,
                                                                             .weights = m.routed.weights,
                                                                             .priority = m.routed.priority,
                                                                             .dropped = m.dropped,
                                                                             .load = m.load,
                                                                             .used = m.used,
                                                                             .order = m.order},
                                                                            m.plan());
    decisions const& to = args.decisions;
    if (to.experts != nullptr) std::copy(m.routed.experts, m.routed.experts + pairs, to.experts);
    for (std::int64_t pair = 0; to.weights != nullptr && pair < pairs; ++pair) {
      to.weights[pair] = m.dropped[pair] ? 0.0f : m.routed.weights[pair];
    }
    if (to.dropped != nullptr) std::copy(m.dropped, m.dropped + pairs, to.dropped);
    for (int e = 0; to.counts != nullptr && e < dims.experts; ++e) to.counts[e] = m.offsets[e + 1] - m.offsets[e];
    for (int e = dims.experts; to.counts != nullptr && e < Layer::all_experts; ++e) to.counts[e] = 0;
    if (to.load != nullptr) std::copy(m.load, m.load + Layer::all_experts, to.load);
    routing<Layer>::template auxiliary<Layer>(args, m.of_routing, m.routed, m.dropped);
  }

  /// What the experts see: the tokens, or what a router has made of them.
  template <class Layer>
  static view<typename Layer::element const> tokens_of_experts(forward_args<Layer> const& args,
                                                               memory<Layer> const& m) {
    return routing<Layer>::template tokens_of_experts<Layer>(args, m.of_routing);
  }

  /// Rows to results, and each token's sum over its experts.
  template <class Layer>
  static void experts(forward_args<Layer> const& args, cpu_context const& context, memory<Layer> const& m,
                      view<typename Layer::element const> const& tokens) {
    using element = typename Layer::element;
    expert_results<element> const results =
        computing<Layer>::template run<Layer>(args, context, tokens, m.plan(), m.routed.weights, m.of_experts);
    using nulls = typename decltype(nulls_of<Layer>())::type;
    combine<element, nulls>({.tokens = tokens,
                             .output = args.output,
                             .hidden = Layer::dims.hidden,
                             .top_k = Layer::dims.top_k,
                             .active = args.active,
                             .experts = m.routed.experts,
                             .row_of = m.row_of,
                             .weights = m.routed.weights,
                             .dropped_pairs = m.dropped,
                             .results = results,
                             .weighs_input = Layer::router_traits.weighs_input,
                             .on_drop = Layer::capacity_traits.on_drop,
                             .replaces_zeros = Layer::router_traits.replaces_zeros},
                            context);
  }
};

}  // namespace cpu

namespace backend {

/// Runs a layer on the CPU in four steps: route, plan, experts, combine. What takes little time is done on the calling thread:
/// the plan, taking over precomputed routes, checks, copies of decisions, auxiliary values, and between the products of clusters
/// and strata the counting and the tables of weights. The rest is parallel. The result has the same bits for any number of threads
/// and on every run with the same instruction set. Rows that are not active cost a row of the router and of the shared expert.
struct cpu {
  static constexpr std::string_view name = "cpu";
  using context = cpu_context;

  template <class Layer>
  static constexpr std::string_view name_for() {
    return name;
  }

  template <class Layer>
  static constexpr std::size_t workspace_bytes(std::int64_t tokens) {
    return bytes_of_memory<call_memory<Layer>>(tokens);
  }

  template <class Layer>
  static void forward(forward_args<Layer> const& args, context const& wanted) {
    context const chosen = switchyard::cpu::resolved(wanted);
    call_memory<Layer> m = memory_of(args);
    workspace_use const alone(m.mark);
    schedule<Layer>::template run<Layer>(args, chosen, m.of_layer);
  }

  /// The first of the three steps of `forward`: tokens to experts and weights. Steps of one call share its arguments. Throws `error`
  /// where `forward` would; then nothing has been written but workspace.
  template <class Layer>
  static void route(forward_args<Layer> const& args, context const& wanted = {}) {
    check_step(args);
    context const chosen = switchyard::cpu::resolved(wanted);
    call_memory<Layer> m = memory_of(args);
    workspace_use const alone(m.mark);
    schedule<Layer>::template route<Layer>(args, chosen, m.of_layer);
  }

  /// The second step: from the routes in the workspace to the rows of each expert.
  template <class Layer>
  static void plan(forward_args<Layer> const& args, context const& = {}) {
    check_step(args);
    call_memory<Layer> m = memory_of(args);
    workspace_use const alone(m.mark);
    schedule<Layer>::template plan<Layer>(args, m.of_layer);
  }

  /// The third step: both products, and the sum over each token's experts.
  template <class Layer>
  static void experts(forward_args<Layer> const& args, context const& wanted = {}) {
    experts<Layer>(args, wanted, schedule<Layer>::template tokens_of_experts<Layer>(args, memory_of(args).of_layer));
  }

  /// The same on rows of the caller's, [tokens, hidden], which the experts see in the place of the tokens: those that a norm, a
  /// dequantisation or another device has made.
  template <class Layer>
  static void experts(forward_args<Layer> const& args, context const& wanted,
                      std::type_identity_t<view<typename Layer::element const>> const& rows) {
    check_step(args);
    checks::check_matrix(rows, "rows", args.tokens.rows, Layer::dims.hidden);
    context const chosen = switchyard::cpu::resolved(wanted);
    call_memory<Layer> m = memory_of(args);
    workspace_use const alone(m.mark);
    schedule<Layer>::template experts<Layer>(args, chosen, m.of_layer, rows);
  }

  /// Where the routes of a call stand after `route`. An engine that makes its own hands them to a layer of
  /// `router::precomputed`, whose `route` takes them over.
  template <class Layer>
  static cpu_routes routes_of(forward_args<Layer> const& args) {
    auto const m = memory_of(args);
    return {m.of_layer.routed.experts, m.of_layer.routed.weights};
  }

  /// Where the plan of a call stands after `plan`, to be read. `pair_of` has as many entries as there are rows: `offsets[experts]`.
  template <class Layer>
  static dispatch_plan plan_of(forward_args<Layer> const& args) {
    static_assert(std::is_same_v<typename decltype(schedule_of<Layer>())::type, router::one_pass>,
                  "switchyard: a layer whose experts are rows plans nothing, and one of router::stratified plans for "
                  "every stratum, so there is no "
                  "plan to look at.");
    return memory_of(args).of_layer.plan();
  }

 private:
  template <class Layer>
  using schedule = switchyard::cpu::schedule_step<typename decltype(schedule_of<Layer>())::type>;

  /// Every temporary of a call.
  template <class Layer>
  struct call_memory {
    std::uint64_t* mark;  // of `workspace_use`
    typename schedule<Layer>::template memory<Layer> of_layer;

    constexpr call_memory(carver& from, std::int64_t tokens)
        : mark(from.take<std::uint64_t>(1)), of_layer(from, tokens) {}
  };

  template <class Layer>
  static call_memory<Layer> memory_of(forward_args<Layer> const& args) {
    carver split(args.workspace.data());
    return {split, args.tokens.rows};
  }

  template <class Layer>
  static void check_step(forward_args<Layer> const& args) {
    static_assert(
        std::is_same_v<typename Layer::router::schedule, router::one_pass>,
        "switchyard: a layer of router::stratified routes, plans and computes once for every stratum, so its steps "
        "cannot be called one by one. Call forward.");
    Layer::check(args);
  }
};

}  // namespace backend
}  // namespace switchyard
