#pragma once

#include <switchyard/backend/cuda/alignment.cuh>
#include <switchyard/backend/cuda/auxiliary.cuh>
#include <switchyard/backend/cuda/clustering.cuh>
#include <switchyard/backend/cuda/combine.cuh>
#include <switchyard/backend/cuda/grouped_gemm.cuh>
#include <switchyard/backend/cuda/launch.cuh>
#include <switchyard/backend/cuda/pass_size.cuh>
#include <switchyard/backend/cuda/plan.cuh>
#include <switchyard/backend/cuda/products.cuh>
#include <switchyard/backend/cuda/route.cuh>
#include <switchyard/backend/cuda/strata.cuh>
#include <switchyard/backend/cuda/temporaries.cuh>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/dispatch/pass.hpp>
#include <switchyard/layer.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace switchyard {

/// A call's routes in its workspace, on the device.
struct cuda_routes {
  std::int32_t const* experts;  ///< [tokens, top_k]; -1 for a pair that goes nowhere
  float const* weights;         ///< [tokens, top_k], before any expert dropped the token
};

namespace cuda {

/// The arguments of both products.
template <class Element>
struct both_products {
  product_args<Element> first, second;
};

/// The matrices and vectors of a layer's experts; what there is none of is empty.
template <class Element>
struct expert_weights {
  weight_view<Element> gate = {}, up = {}, down = {};
  expert_biases<Element> bias = {};
  shared_expert_weights<Element> shared = {};
};

/// The arguments of both products; `tokens` are what the experts see.
template <class Element>
both_products<Element> arguments_of_products(layer_sizes const& layer, temporaries<Element> const& p, bool weighs_input,
                                             expert_weights<Element> const& weights,
                                             view<Element const> const& tokens) {
  product_args<Element> first{.routed = {},
                              .shared = {},
                              .experts = layer.dims.experts,
                              .top_k = layer.dims.top_k,
                              .offsets = p.plan.offsets,
                              .pair_of = p.plan.pair_of,
                              .weights = nullptr,
                              .tokens = tokens.rows};
  auto second = first;
  if (weighs_input) first.weights = p.weights;
  first.routed = {.depth = layer.dims.hidden,
                  .features = layer.dims.intermediate,
                  .rows = tokens.data,
                  .row_stride = tokens.row_stride,
                  .how = is_aligned(tokens) ? access::by_chunks : access::along_columns,
                  .gate = weights_of(weights.gate),
                  .weight = weights_of(weights.up),
                  .gate_bias = weights.bias.gate,
                  .bias = weights.bias.up,
                  .result = p.inner,
                  .result_stride = p.inner_stride,
                  .exponents = p.exponents};
  second.routed = {.depth = layer.dims.intermediate,
                   .features = layer.dims.hidden,
                   .rows = p.inner,
                   .row_stride = p.inner_stride,
                   .how = access::by_chunks,
                   .gate = {},
                   .weight = weights_of(weights.down),
                   .gate_bias = {},
                   .bias = weights.bias.down,
                   .result = p.outer,
                   .result_stride = p.outer_stride,
                   .exponents = p.exponents};
  if (layer.shared_intermediate > 0) {
    first.shared = first.routed;
    first.shared.features = layer.shared_intermediate;
    first.shared.gate = weights_of(weights.shared.gate_proj);
    first.shared.weight = weights_of(weights.shared.up_proj);
    first.shared.gate_bias = first.shared.bias = {};
    first.shared.result = p.shared_inner;
    first.shared.result_stride = p.shared_inner_stride;
    first.shared.exponents = p.shared_exponents;
    second.shared = second.routed;
    second.shared.depth = layer.shared_intermediate;
    second.shared.rows = p.shared_inner;
    second.shared.row_stride = p.shared_inner_stride;
    second.shared.weight = weights_of(weights.shared.down_proj);
    second.shared.bias = {};
    second.shared.result = p.shared_outer;
    second.shared.exponents = p.shared_exponents;
  }
  return {first, second};
}

/// What the backends of the GPU have in common: the steps of a layer as launches. `Products` has the two products,
/// `enqueue<Layer>(where, first, second)`.
template <class Products>
class layer_steps {
 public:
  using context = cuda_context;

  template <class Layer>
  static constexpr std::size_t workspace_bytes(std::int64_t tokens) {
    carver measure;
    if constexpr (is_stratified<Layer>) {
      strata_temporaries_of<Layer>(measure, tokens);
    } else {
      temporaries<typename Layer::element>(sizes_of<Layer>, measure, tokens);
    }
    return measure.bytes();
  }

  template <class Layer>
  static void forward(forward_args<Layer> const& args, context const& where) {
    if constexpr (is_stratified<Layer>) {
      carver split(args.workspace.data());
      enqueue_passes(args, where, strata_temporaries_of<Layer>(split, args.tokens.rows), strata_of<Layer>{});
    } else {
      enqueue_once(args, where);
    }
  }

  /// Kernels that one `forward` of at least one token enqueues; one more, or one more for each stratum, when auxiliary
  /// values are asked for. With `router::adaptive_clustering` they are fewer when the call gives the weights of the features.
  template <class Layer>
  static constexpr int launches(bool feature_scale_given = false) {
    constexpr clustering_traits clustering = Layer::router_traits.clustering;
    constexpr int strata = Layer::router_traits.stratification.strata;
    if constexpr (strata > 0) return strata * (2 + launches<dispatch::pass_layer<Layer, 0>>());
    bool const sorts = Layer::capacity_traits.drops && Layer::capacity_traits.order == queue::priority;
    int const weights = !clustering.scales ? 0 : !feature_scale_given ? 7 : clustering.unit_rows ? 1 : 0;
    return 5 + (Layer::capacity_traits.drops ? 1 : 0) + (sorts ? 1 : 0) + weights +
           (clustering.experts_see_scaled ? 1 : 0);
  }

  /// The first of the three steps of `forward`: tokens to experts and weights. Steps of one call share its arguments.
  template <class Layer>
  static void route(forward_args<Layer> const& args, context const& where = {}) {
    check_step(args);
    enqueue_route(args, where, temporaries_of(args));
  }

  /// The second step: from the routes in the workspace to the rows of each expert.
  template <class Layer>
  static void plan(forward_args<Layer> const& args, context const& where = {}) {
    check_step(args);
    enqueue_plan(args, where, temporaries_of(args));
  }

  /// The third step: both products, and the sum over each token's experts.
  template <class Layer>
  static void experts(forward_args<Layer> const& args, context const& where = {}) {
    check_step(args);
    enqueue_experts(args, where, temporaries_of(args));
  }

  /// Where the routes of a call stand after `route`. An engine that makes its own hands them to a layer of
  /// `router::precomputed`, whose `route` takes them over.
  template <class Layer>
  static cuda_routes routes_of(forward_args<Layer> const& args) {
    auto const p = temporaries_of(args);
    return {p.experts, p.routed_weights};
  }

  /// Where the plan of a call stands after `plan`, to be read. `pair_of` has as many entries as there are rows: `offsets[experts]`.
  template <class Layer>
  static dispatch_plan plan_of(forward_args<Layer> const& args) {
    return temporaries_of(args).plan;
  }

 protected:
  template <class Layer>
  static constexpr bool is_stratified = Layer::router_traits.stratification.strata > 0;
  template <class Layer>
  using strata_of = std::make_integer_sequence<int, Layer::router_traits.stratification.strata>;

  template <class Layer>
  static void check_step(forward_args<Layer> const& args) {
    static_assert(
        !is_stratified<Layer>,
        "switchyard: a layer of router::stratified routes, plans and computes once for every stratum, so its steps "
        "cannot be called one by one. Call forward.");
    Layer::check(args);
  }

  template <class Layer>
  static constexpr bool may_route_two_blocks() {
    if constexpr (Layer::router_traits.precomputed) {
      return false;
    } else {
      return route_tile<layer_routing<Layer>, 2>::shared_bytes <= least_shared_bytes;
    }
  }
  template <class Layer>
  static constexpr layer_sizes sizes_of{.dims = Layer::dims,
                                        .shared_intermediate = Layer::expert_traits.shared_intermediate,
                                        .capacity = Layer::capacity_traits,
                                        .clustering = Layer::router_traits.clustering,
                                        .precomputed = Layer::router_traits.precomputed,
                                        .may_route_two_blocks = may_route_two_blocks<Layer>()};

  template <class Layer>
  static temporaries<typename Layer::element> temporaries_of(forward_args<Layer> const& args) {
    carver split(args.workspace.data());
    return {sizes_of<Layer>, split, args.tokens.rows};
  }

  template <class Layer>
  static std::int64_t group_size(forward_args<Layer> const& args) {
    std::int64_t const tokens = args.tokens.rows;
    return args.tokens_per_group > 0 && args.tokens_per_group < tokens ? args.tokens_per_group : tokens;
  }

  /// The steps of a layer without strata, or of a pass.
  template <class Layer>
  static void enqueue_once(forward_args<Layer> const& args, context const& where, pass_size const* pass = nullptr) {
    auto const p = temporaries_of(args);
    enqueue_route(args, where, p, pass);
    enqueue_plan(args, where, p, pass);
    enqueue_experts(args, where, p, pass);
  }

  template <class Layer>
  static void enqueue_route(forward_args<Layer> const& args, context const& where,
                            temporaries<typename Layer::element> const& p, pass_size const* pass = nullptr) {
    using element = typename Layer::element;
    std::int64_t const tokens = args.tokens.rows;
    if (tokens == 0 && !Layer::router_traits.clustering.scales) return;
    route_results const results{.experts = p.experts,
                                .weights = p.routed_weights,
                                .priority = p.priority,
                                .chosen = p.chosen,
                                .kept = Layer::capacity_traits.drops ? p.kept : pair_sets{},
                                .sorted = p.sorted,
                                .below = p.below,
                                .row_of = p.plan.row_of,
                                .dropped = p.dropped};
    if constexpr (Layer::router_traits.precomputed) {
      constexpr shape dims = Layer::dims;
      constexpr std::size_t shared_bytes = take_routes_tile::shared_bytes(dims.experts, dims.top_k);
      static_assert(
          shared_bytes <= most_shared_bytes,
          "switchyard: backend::cuda keeps the pairs of 32 tokens in shared memory, a bit for every expert, which "
          "has no room for so many experts and choices. Use fewer of them.");
      launch(where, "take_routes", take_routes<take_routes_tile>, p.chosen.pieces, take_routes_tile::threads,
             shared_bytes, args.routes, tokens, dims.experts, dims.top_k, args.active, results);
    } else {
      route_args<element> to{.tokens = args.tokens,
                             .pass = pass,
                             .router = {},
                             .active = args.active,
                             .aligned_tokens = is_aligned(args.tokens),
                             .aligned_router = false,
                             .clusters = {},
                             .aligned_scale = false,
                             .inverse_lengths = nullptr,
                             .logits = args.decisions.logits,
                             .results = results};
      if constexpr (Layer::router_traits.gate == gate_owner::model) {
        to.router = args.shared_router;
      } else {
        to.router = args.weights.router;
      }
      if constexpr (!Layer::router_traits.bias) to.router.bias = nullptr;
      to.aligned_router = is_aligned(to.router.weight, Layer::dims.hidden);
      if (args.auxiliary != nullptr && to.logits == nullptr) to.logits = p.logits;
      if constexpr (Layer::router_traits.clustering.scales) {
        enqueue_clustering(args, where, p, to);
        if (tokens == 0) return;
      }
      using routing = layer_routing<Layer>;
      if constexpr (may_route_two_blocks<Layer>()) {
        if (sizes_of<Layer>.route_blocks(tokens) == 2) return enqueue_route_tokens<routing, 2>(where, to);
      }
      enqueue_route_tokens<routing, 1>(where, to);
    }
  }

  /// The weights of the features, unless the caller gives them, and what else routing needs of them.
  template <class Layer>
  static void enqueue_clustering(forward_args<Layer> const& args, context const& where,
                                 temporaries<typename Layer::element> const& p,
                                 route_args<typename Layer::element>& to) {
    constexpr shape dims = Layer::dims;
    constexpr clustering_traits form = Layer::router_traits.clustering;
    constexpr std::int64_t slices = divide_up(dims.hidden, 32);
    constexpr int threads = clustering_threads;
    std::int64_t const tokens = args.tokens.rows;
    using element = typename Layer::element;
    clustering_args<element> const with{.hidden = dims.hidden,
                                        .experts = dims.experts,
                                        .counts_empty = form.counts_empty,
                                        .tokens = args.tokens,
                                        .active = args.active,
                                        .clusters = args.clusters,
                                        .router = to.router.weight,
                                        .counted = p.counted,
                                        .offsets = p.cluster_offsets,
                                        .order = p.cluster_order,
                                        .known = p.known_clusters,
                                        .partial = p.partial,
                                        .mean = p.mean,
                                        .totals = p.totals,
                                        .scale = p.scale,
                                        .scale_asked = args.decisions.feature_scale,
                                        .dispersion = args.decisions.dispersion,
                                        .inverse_lengths = p.inverse_lengths,
                                        .tile_rows = static_cast<int>(cluster_tile_rows(tokens))};
    to.clusters = args.clusters;
    to.inverse_lengths = p.inverse_lengths;
    if (args.clusters.feature_scale == nullptr) {
      to.clusters.feature_scale = p.scale;
      std::int64_t const tiles = sizes_of<Layer>.cluster_tiles(tokens) * divide_up(dims.hidden, threads);
      if (tokens > 0) {
        launch(where, "count_tokens", count_tokens<element>, divide_up(tokens, clustering_warps), threads, 0, with);
      }
      launch(where, "order_by_cluster", order_by_cluster<element>, dims.experts, threads, 0, with);
      launch(where, "sum_rows", sum_rows<element>, tiles, threads, 0, with);
      launch(where, "cluster_means", cluster_means<element>, dims.experts * slices, threads, 0, with);
      launch(where, "sum_rows (deviations)", sum_rows<element, clustering_form<form>>, tiles, threads, 0, with);
      launch(where, "cluster_weights", cluster_weights<element, clustering_form<form>>, dims.experts * slices, threads,
             0, with);
      launch(where, "scale_weights", scale_weights<element, clustering_form<form>>, slices, threads, 0, with);
    } else {
      if constexpr (form.unit_rows) {
        launch(where, "row_lengths", row_lengths<element>, dims.experts, threads, 0, with);
      }
      if (args.decisions.feature_scale != nullptr) {
        check("cudaMemcpyAsync",
              cudaMemcpyAsync(args.decisions.feature_scale, args.clusters.feature_scale,
                              sizeof(float) * dims.experts * dims.hidden, cudaMemcpyDeviceToDevice, where.stream));
      }
    }
    to.aligned_scale = is_aligned(to.clusters.feature_scale, dims.hidden);
    if constexpr (form.experts_see_scaled) {
      if (tokens == 0) return;
      launch(where, "scale_tokens", scale_tokens<element>, tokens, threads, 0, with, to.clusters.feature_scale,
             p.scaled_tokens, p.outer_stride);
    }
  }

  template <class Routing, int TokenBlocks>
  static void enqueue_route_tokens(context const& where, route_args<typename Routing::element> const& to) {
    using tile = route_tile<Routing, TokenBlocks>;
    static_assert(tile::shared_bytes <= most_shared_bytes,
                  "switchyard: backend::cuda keeps a block's logits in shared memory, which has no room for so many "
                  "experts. Use fewer experts, or router::precomputed.");
    launch(where, "route_tokens", route_tokens<Routing, TokenBlocks>, to.results.chosen.pieces, tile::threads,
           tile::shared_bytes, to);
  }

  template <class Layer>
  static void enqueue_plan(forward_args<Layer> const& args, context const& where,
                           temporaries<typename Layer::element> const& p, pass_size const* pass = nullptr) {
    constexpr shape dims = Layer::dims;
    std::int64_t const tokens = args.tokens.rows;
    std::int64_t const size = group_size(args), groups = tokens == 0 ? 0 : divide_up(tokens, size);
    plan_args const with{.experts = dims.experts,
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
                         .any_exponent = p.exponents.any,
                         .counts = args.decisions.counts,
                         .load = args.decisions.load};
    if constexpr (Layer::capacity_traits.drops) {
      if (tokens > 0) {
        if constexpr (Layer::capacity_traits.order == queue::priority) {
          launch(where, "order_tokens", order_tokens<plan_threads>, groups, plan_threads, 0, with);
        }
        launch(where, "queue_pairs", queue_pairs<plan_threads, slots_of<typename Layer::capacity, dims>>,
               groups * dims.experts, plan_threads, 0, with);
      }
    }
    launch(where, "assign_rows", assign_rows<plan_threads>, dims.experts, plan_threads, 0, with);
  }

  /// The arguments of both products; `tokens` are what the experts see.
  template <class Layer>
  static both_products<typename Layer::element> products_at(temporaries<typename Layer::element> const& p,
                                                            forward_args<Layer> const& args,
                                                            view<typename Layer::element const> const& tokens) {
    constexpr expert_traits traits = Layer::expert_traits;
    expert_weights<typename Layer::element> weights{.up = args.weights.up_proj, .down = args.weights.down_proj};
    if constexpr (traits.gated) weights.gate = args.weights.gate_proj;
    if constexpr (traits.bias) weights.bias = args.weights.bias;
    if constexpr (traits.shared_intermediate > 0) weights.shared = args.weights.shared;
    return arguments_of_products(sizes_of<Layer>, p, Layer::router_traits.weighs_input, weights, tokens);
  }

  /// What the experts see: the tokens of the call, or those that a router has scaled.
  template <class Layer>
  static view<typename Layer::element const> tokens_of_experts(temporaries<typename Layer::element> const& p,
                                                               forward_args<Layer> const& args) {
    if constexpr (Layer::router_traits.clustering.experts_see_scaled) {
      return {p.scaled_tokens, args.tokens.rows, Layer::dims.hidden, p.outer_stride};
    } else {
      return args.tokens;
    }
  }

  template <class Layer>
  static void enqueue_experts(forward_args<Layer> const& args, context const& where,
                              temporaries<typename Layer::element> const& p, pass_size const* pass = nullptr) {
    using element = typename Layer::element;
    constexpr shape dims = Layer::dims;
    constexpr expert_traits traits = Layer::expert_traits;
    view<element const> const seen = tokens_of_experts(p, args);
    std::int64_t const tokens = seen.rows;
    if (tokens > 0) {
      both_products<element> const products = products_at(p, args, seen);
      Products::template enqueue<Layer>(where, products.first, products.second);

      combine_args<element> sum{
          .scale = static_cast<float>(traits.scale_numerator) / static_cast<float>(traits.scale_denominator),
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
          .outer = p.outer,
          .outer_stride = p.outer_stride,
          .shared_outer = p.shared_outer,
          .shared_gate = nullptr,
          .decisions = args.decisions};
      if constexpr (traits.gate == shared_gate::sigmoid) sum.shared_gate = args.weights.shared.gate;
      constexpr dropped on_drop = Layer::capacity_traits.drops ? Layer::capacity_traits.on_drop : dropped::zero;
      launch(where, "combine_rows", combine_rows<element, dims.top_k, on_drop>, tokens,
             combine_threads<element>(dims.hidden), 0, sum);
    }
    if constexpr (!Layer::router_traits.precomputed) {
      if (args.auxiliary != nullptr) {
        // The rows between the products are not needed any more, and take at least 16 bytes per token.
        launch(where, "auxiliary_of_pass", auxiliary_of_pass<auxiliary_threads>, 1, auxiliary_threads,
               2 * dims.experts * sizeof(double),
               routing_record{.tokens = tokens,
                              .tokens_per_group = args.tokens_per_group,
                              .logits = args.decisions.logits != nullptr ? args.decisions.logits : p.logits,
                              .experts = p.experts,
                              .weights = p.weights,
                              .dropped = p.dropped,
                              .active = args.active},
               dims.experts, dims.top_k, pass, reinterpret_cast<double*>(p.inner), args.auxiliary);
      }
    }
  }

  template <class Layer>
  static constexpr strata_temporaries<typename Layer::element> strata_temporaries_of(carver& from,
                                                                                     std::int64_t tokens) {
    constexpr stratification_traits form = Layer::router_traits.stratification;
    return {Layer::dims,
            form.strata,
            form.norms && !form.normalised_residual,
            scratch_bytes<Layer>(tokens, strata_of<Layer>{}),
            from,
            tokens};
  }

  /// What the largest pass needs.
  template <class Layer, int... Stratum>
  static constexpr std::size_t scratch_bytes(std::int64_t tokens, std::integer_sequence<int, Stratum...>) {
    return std::max({workspace_bytes<dispatch::pass_layer<Layer, Stratum>>(tokens)...});
  }

  template <class Layer, int... Stratum>
  static void enqueue_passes(forward_args<Layer> const& args, context const& where,
                             strata_temporaries<typename Layer::element> const& p,
                             std::integer_sequence<int, Stratum...>) {
    (enqueue_pass<Stratum>(args, where, p), ...);
  }

  /// Gathers the tokens of a stratum, runs the layer of its experts and those above, and brings the tokens back.
  template <int Stratum, class Layer>
  static void enqueue_pass(forward_args<Layer> const& args, context const& where,
                           strata_temporaries<typename Layer::element> const& p) {
    using pass = dispatch::pass_layer<Layer, Stratum>;
    using element = typename Layer::element;
    std::int64_t const tokens = args.tokens.rows;
    constexpr int strata = Layer::strata_or_one;
    strata_args<element> const with{.strata = strata,
                                    .top_k = Layer::dims.top_k,
                                    .stratum = Stratum,
                                    .first_expert = Layer::router::first_expert(Stratum),
                                    .pass = pass::dims,
                                    .tokens = args.tokens,
                                    .residual = args.residual,
                                    .output = args.output,
                                    .aligned_tokens = is_aligned(args.tokens),
                                    .aligned_residual = is_aligned(args.residual),
                                    .aligned_output = is_aligned(args.output),
                                    .active = args.active,
                                    .decisions = args.decisions,
                                    .auxiliary = args.auxiliary,
                                    .record = p};
    strata_above<strata> above{.first_expert = {}, .normalises = false, .aligned_norms = true, .norm = {}};
    for (int i = 0; i < strata; ++i) above.first_expert[i] = Layer::router::first_expert(i);
    if constexpr (Layer::router_traits.stratification.norms) {
      above.normalises = true;
      above.norm = args.weights.norm;
      for (layer_norm const& norm : above.norm.after) {
        above.aligned_norms = above.aligned_norms && is_aligned(norm.weight, 0) && is_aligned(norm.bias, 0);
      }
    }
    std::int64_t const blocks = tokens == 0 ? 1 : tokens;  // the counts of no token are written, too
    launch(where, "gather_stratum", gather_stratum<element>, divide_up(blocks, gathered_tokens), gather_threads, 0,
           with);
    forward_args<pass> of_pass = dispatch::pass_args<Stratum>(args);
    of_pass.tokens = {p.rows, tokens, Layer::dims.hidden, p.stride};
    of_pass.output = {p.rows, tokens, Layer::dims.hidden, p.stride};
    of_pass.workspace = p.of_pass;
    of_pass.decisions.experts = p.experts;
    of_pass.decisions.weights = p.weights;
    of_pass.decisions.dropped = p.dropped;
    of_pass.decisions.counts = p.counts;
    of_pass.decisions.load = p.load;
    if (args.auxiliary != nullptr) of_pass.auxiliary = p.auxiliary + Stratum;
    enqueue_once(of_pass, where, p.sizes + Stratum);
    constexpr int hidden = Layer::dims.hidden;
    launch(where, "finish_pass", finish_pass<element, strata, finish_turns<element>(hidden)>, blocks,
           combine_threads<element>(hidden), 0, with, above);
  }
};

}  // namespace cuda
}  // namespace switchyard
