#pragma once

#include <switchyard/backend/backend_policy.hpp>
#include <switchyard/backend/cuda/combine.cuh>
#include <switchyard/backend/cuda/launch.cuh>
#include <switchyard/backend/cuda/pass_size.cuh>
#include <switchyard/backend/cuda/plan.cuh>
#include <switchyard/backend/cuda/products.cuh>
#include <switchyard/backend/cuda/route.cuh>
#include <switchyard/backend/cuda/steps.cuh>
#include <switchyard/backend/cuda/temporaries.cuh>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/layer.hpp>

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

namespace switchyard {

/// A call's routes in its workspace, on the device.
struct cuda_routes {
  std::int32_t const* experts;  ///< [tokens, top_k]; -1 for a pair that goes nowhere
  float const* weights;         ///< [tokens, top_k], before any expert dropped the token
};

namespace cuda {

/// A layer that runs over its tokens once: route, plan, experts with combine.
template <class Products>
struct schedule_step<router::one_pass, Products> {
  template <class Layer>
  using routing = route_step<typename Layer::router::source>;
  template <class Layer>
  using computing = experts_step<computation_of<Layer>, Products>;

  template <class Layer>
  struct memory {
    typename routing<Layer>::template memory<Layer> of_routing;
    plan_memory of_plan;
    typename computing<Layer>::template memory<Layer> of_experts;

    constexpr memory(carver& from, std::int64_t tokens)
        : of_routing(from, tokens),
          of_plan({.experts = Layer::dims.experts,
                   .all_experts = Layer::all_experts,
                   .top_k = Layer::dims.top_k,
                   .capacity = Layer::capacity_traits,
                   .block_tokens = routing<Layer>::template block_tokens<Layer>(tokens),
                   .least_block_tokens = routing<Layer>::least_block_tokens},
                  from, tokens),
          of_experts(from, tokens) {}

    cuda_routes routed() const { return {of_plan.experts, of_plan.routed_weights}; }
  };

  /// `pass` is null but for a pass of a stratified layer.
  template <class Layer>
  static void enqueue(forward_args<Layer> const& args, launch_queue const& queue, memory<Layer> const& m,
                      pass_size const* pass = nullptr) {
    enqueue_route(args, queue, m, pass);
    enqueue_plan(args, queue, m, pass);
    enqueue_experts(args, queue, m, tokens_of_experts(args, m), pass);
  }

  /// Tokens to experts and weights.
  template <class Layer>
  static void enqueue_route(forward_args<Layer> const& args, launch_queue const& queue, memory<Layer> const& m,
                            pass_size const* pass = nullptr) {
    plan_memory const& p = m.of_plan;
    routing<Layer>::template enqueue<Layer>(args, queue, m.of_routing,
                                            {.experts = p.experts,
                                             .weights = p.routed_weights,
                                             .priority = p.priority,
                                             .chosen = p.chosen,
                                             .kept = Layer::capacity_traits.drops ? p.kept : pair_sets{},
                                             .sorted = p.sorted,
                                             .below = p.below,
                                             .row_of = p.plan.row_of,
                                             .dropped = p.dropped},
                                            pass);
  }

  /// Routes to the rows of each expert.
  template <class Layer>
  static void enqueue_plan(forward_args<Layer> const& args, launch_queue const& queue, memory<Layer> const& m,
                           pass_size const* pass = nullptr) {
    constexpr shape dims = Layer::dims;
    plan_memory const& p = m.of_plan;
    std::int64_t const tokens = args.tokens.rows;
    std::int64_t const size =
        args.tokens_per_group > 0 && args.tokens_per_group < tokens ? args.tokens_per_group : tokens;
    std::int64_t const groups = tokens == 0 ? 0 : divide_up(tokens, size);
    plan_args const plan{.experts = dims.experts,
                         .top_k = dims.top_k,
                         .served = Layer::capacity_traits.order,
                         .renormalises = Layer::capacity_traits.renormalises,
                         .tokens = tokens,
                         .pass = pass,
                         .group_size = size,
                         .groups = groups,
                         .active = Layer::capacity_traits.counts_padding ? nullptr : args.active,
                         .chosen = p.chosen,
                         .kept = p.kept,
                         .sorted = p.sorted,
                         .below = p.below,
                         .rows = p.rows,
                         .choices = p.experts,
                         .routed_weights = p.routed_weights,
                         .priority = p.priority,
                         .order = p.order,
                         .scratch = p.scratch,
                         .dropped = p.dropped,
                         .weights = p.weights,
                         .plan = p.plan,
                         .any_exponent = m.of_experts.to_clear(),
                         .counts = args.decisions.counts,
                         .load = args.decisions.load};
    if constexpr (Layer::capacity_traits.drops) {
      if (tokens > 0) {
        if constexpr (Layer::capacity_traits.order == queue::priority) {
          launch(queue, "order_tokens", order_tokens<plan_threads>, groups, plan_threads, 0, plan);
        }
        launch(queue, "queue_pairs", queue_pairs<plan_threads, slots_of<typename Layer::capacity, dims>>,
               groups * dims.experts, plan_threads, 0, plan);
      }
    }
    launch(queue, "assign_rows", assign_rows<plan_threads, (Layer::all_experts > dims.experts)>, Layer::all_experts,
           plan_threads, 0, plan);
  }

  /// Rows to results, and each token's sum over its experts.
  template <class Layer>
  static void enqueue_experts(forward_args<Layer> const& args, launch_queue const& queue, memory<Layer> const& m,
                              view<typename Layer::element const> const& seen, pass_size const* pass = nullptr) {
    using element = typename Layer::element;
    constexpr shape dims = Layer::dims;
    plan_memory const& p = m.of_plan;
    if (seen.rows > 0) {
      expert_results<element> const results =
          computing<Layer>::template enqueue<Layer>(args, queue, seen, p, m.of_experts, pass);
      constexpr dropped on_drop = Layer::capacity_traits.drops ? Layer::capacity_traits.on_drop : dropped::zero;
      using nulls = typename decltype(nulls_of<Layer>())::type;
      launch(queue, "combine_rows",
             combine_rows<element, dims.top_k, on_drop, Layer::expert_traits.output_bias, nulls,
                          Layer::router_traits.replaces_zeros>,
             seen.rows, combine_threads<element>(dims.hidden), 0,
             combine_args<element>{.results = results,
                                   .weighs_input = Layer::router_traits.weighs_input,
                                   .tokens = seen,
                                   .pass = pass,
                                   .output = args.output,
                                   .aligned = is_aligned(seen) && is_aligned(args.output),
                                   .active = args.active,
                                   .experts = p.experts,
                                   .weights = p.weights,
                                   .dropped = p.dropped,
                                   .row_of = p.plan.row_of,
                                   .decisions = args.decisions});
    }
    routing<Layer>::template enqueue_auxiliary<Layer>(args, queue, m.of_routing, p, pass, m.of_experts.spare());
  }

  template <class Layer>
  static view<typename Layer::element const> tokens_of_experts(forward_args<Layer> const& args,
                                                               memory<Layer> const& m) {
    return routing<Layer>::template tokens_of_experts<Layer>(args, m.of_routing);
  }
};

/// What the backends of the GPU have in common. `Products` has the two products of feed-forward blocks.
template <class Products>
class layer_steps {
 public:
  using context = cuda_context;
  using products = Products;

  /// Throws where the device at hand cannot run it.
  static void check_device() {}

  template <class Layer>
  static constexpr std::size_t workspace_bytes(std::int64_t tokens) {
    return bytes_of_memory<memory<Layer>>(tokens);
  }

  template <class Layer>
  static void forward(forward_args<Layer> const& args, context const& where) {
    if constexpr (expert_storage<typename Layer::backend>::in_cache) check_not_captured(where.stream);
    schedule<Layer>::template enqueue<Layer>(args, where, memory_of(args));
  }

  /// Kernels that `forward` enqueues for these arguments, and copies: adaptive clustering makes one of a table that is given
  /// and asked for. Asks no device and reads nothing that the arguments point to.
  template <class Layer>
  static int launches(forward_args<Layer> const& args) {
    check_that_kernels_are_known<Layer>();
    int count = 0;
    schedule<Layer>::template enqueue<Layer>(args, launch_queue(count), memory_of(args));
    return count;
  }

  /// The first of the three steps of `forward`: tokens to experts and weights. Steps of one call share its arguments.
  template <class Layer>
  static void route(forward_args<Layer> const& args, context const& where = {}) {
    check_step(args);
    schedule<Layer>::template enqueue_route<Layer>(args, where, memory_of(args));
  }

  /// The second step: from the routes in the workspace to the rows of each expert.
  template <class Layer>
  static void plan(forward_args<Layer> const& args, context const& where = {}) {
    check_step(args);
    schedule<Layer>::template enqueue_plan<Layer>(args, where, memory_of(args));
  }

  /// The third step: both products, and the sum over each token's experts.
  template <class Layer>
  static void experts(forward_args<Layer> const& args, context const& where = {}) {
    experts<Layer>(args, where, schedule<Layer>::tokens_of_experts(args, memory_of(args)));
  }

  /// The same on rows of the caller's, [tokens, hidden], which the experts see in the place of the tokens: those that a norm, a
  /// dequantisation or another device has made.
  template <class Layer>
  static void experts(forward_args<Layer> const& args, context const& where,
                      std::type_identity_t<view<typename Layer::element const>> const& rows) {
    check_step(args);
    checks::check_matrix(rows, "rows", args.tokens.rows, Layer::dims.hidden);
    schedule<Layer>::template enqueue_experts<Layer>(args, where, memory_of(args), rows);
  }

  /// Where the routes of a call stand after `route`. An engine that makes its own hands them to a layer of
  /// `router::precomputed`, whose `route` takes them over.
  template <class Layer>
  static cuda_routes routes_of(forward_args<Layer> const& args) {
    return memory_of(args).routed();
  }

  /// Where the plan of a call stands after `plan`, to be read. `pair_of` has as many entries as there are rows: `offsets[experts]`.
  template <class Layer>
  static dispatch_plan plan_of(forward_args<Layer> const& args) {
    static_assert(std::is_same_v<typename decltype(schedule_of<Layer>())::type, router::one_pass>,
                  "switchyard: a layer whose experts are rows plans nothing, and one of router::stratified plans for "
                  "every stratum, so there is no "
                  "plan to look at.");
    return memory_of(args).of_plan.plan;
  }

  /// The arguments of both products of a call, for who times them alone.
  template <class Layer>
  static auto products_of_call(forward_args<Layer> const& args) {
    check_that_kernels_are_known<Layer>();
    auto const m = memory_of(args);
    return schedule<Layer>::template computing<Layer>::template products_of<Layer>(
        args, schedule<Layer>::tokens_of_experts(args, m), m.of_plan, m.of_experts);
  }

 private:
  template <class Layer>
  using schedule = schedule_step<typename decltype(schedule_of<Layer>())::type, Products>;
  template <class Layer>
  using memory = typename schedule<Layer>::template memory<Layer>;

  template <class Layer>
  static memory<Layer> memory_of(forward_args<Layer> const& args) {
    carver split(args.workspace.data());
    return {split, args.tokens.rows};
  }

  template <class Layer>
  static constexpr void check_that_kernels_are_known() {
    static_assert(
        !expert_storage<typename Layer::backend>::in_cache,
        "switchyard: which kernels a call of backend::offloaded has depends on which experts are resident. Ask the "
        "layer that has its experts in memory.");
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

}  // namespace cuda

namespace backend {

/// Runs a layer on an NVIDIA GPU of compute capability 8.0 or newer. Everything that the arguments point to is device
/// memory.
///
/// `forward` enqueues kernels, always the same ones for the same arguments, and returns: it allocates nothing, waits for nothing and
/// reads nothing back, so it can be captured in a CUDA graph. The result has the same bits on every run. Logits or routes that are no
/// numbers, or name no expert, cannot be reported: the outputs of their tokens are NaN.
struct cuda : switchyard::cuda::layer_steps<switchyard::cuda::portable_products> {
  static constexpr std::string_view name = "cuda";

  /// The name with what a layer makes of it, for `describe`.
  template <class Layer>
  static constexpr std::string_view name_for() {
    return name;
  }
};

}  // namespace backend
}  // namespace switchyard
