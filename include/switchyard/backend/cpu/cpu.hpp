#pragma once

#include <switchyard/backend/cpu/clustering.hpp>
#include <switchyard/backend/cpu/combine.hpp>
#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/experts.hpp>
#include <switchyard/backend/cpu/kernels.hpp>
#include <switchyard/backend/cpu/route.hpp>
#include <switchyard/backend/cpu/strata.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/dispatch/pass.hpp>
#include <switchyard/layer.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace switchyard {

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
    carver measure;
    if constexpr (Layer::router_traits.stratification.strata > 0) {
      strata_pieces<Layer>(measure, tokens);
    } else {
      pieces<Layer>(measure, tokens);
    }
    return measure.bytes();
  }

  template <class Layer>
  static void forward(forward_args<Layer> const& args, context const& wanted) {
    if constexpr (Layer::router_traits.stratification.strata > 0) {
      forward_by_strata(args, detail::resolved(wanted));
    } else {
      forward_once(args, detail::resolved(wanted));
    }
  }

 private:
  template <class Layer>
  static void forward_once(forward_args<Layer> const& given, context const& where, detail::names const& called = {}) {
    constexpr shape dims = Layer::dims;
    forward_args<Layer> args = given;
    std::int64_t const tokens = args.tokens.rows;
    carver split(args.workspace.data());
    pieces<Layer> const p(split, tokens);
    workspace_use const alone(p.mark);

    if constexpr (Layer::router_traits.precomputed) {
      detail::copy_routes(args.routes, tokens, dims.top_k, dims.experts, args.active, where, p.experts, p.weights,
                          p.priority);
    } else {
      router_weights const router = router_of(args);
      make_logits(args, router, where, p);
      detail::select_experts<typename Layer::router, dims.experts, dims.top_k>(
          tokens, args.active, router, where, p.logits, p.experts, p.weights, p.priority, called);
    }
    if constexpr (Layer::router_traits.clustering.experts_see_scaled)
      args.tokens = Layer::rows(p.scaled_tokens, tokens);

    dispatch_plan const plan{p.offsets, p.pair_of, p.row_of};
    dispatch::make_plan<typename Layer::capacity, dims>({.tokens = tokens,
                                                         .tokens_per_group = args.tokens_per_group,
                                                         .active = args.active,
                                                         .experts = p.experts,
                                                         .weights = p.weights,
                                                         .priority = p.priority,
                                                         .dropped = p.dropped,
                                                         .load = p.load,
                                                         .used = p.used,
                                                         .order = p.order},
                                                        plan);

    detail::run_experts(args, where, plan, p.weights, {p.first_place, p.first_item, p.inner, p.outer});
    if constexpr (Layer::expert_traits.shared_intermediate > 0) {
      detail::run_shared_expert(args, where, {p.first_place, p.first_item, p.shared_inner, p.shared_outer});
    }
    report(args, p);
    combine(args, where, p);
  }

  template <class Layer>
  static router_weights router_of(forward_args<Layer> const& args) {
    if constexpr (Layer::router_traits.gate == gate_owner::model) {
      return args.shared_router;
    } else {
      return args.weights.router;
    }
  }

  /// Every temporary of a call.
  template <class Layer>
  struct pieces {
    static constexpr shape dims = Layer::dims;
    static constexpr int shared_intermediate = Layer::expert_traits.shared_intermediate;

    static constexpr clustering_traits clustering = Layer::router_traits.clustering;

    std::uint64_t* mark;      // of `workspace_use`
    float* logits = nullptr;  // [tokens, experts]
    double* sums = nullptr;   // of auxiliary values
    detail::clustering_scratch clusters = {};
    float* inverse_lengths = nullptr;                  // [experts]
    typename Layer::element* scaled_tokens = nullptr;  // [tokens, hidden]
    std::int32_t* experts;                             // [tokens, top_k]
    float* weights;                                    // [tokens, top_k]
    float* priority;                                   // [tokens]
    std::uint8_t* dropped;                             // [tokens, top_k]
    std::int32_t* order = nullptr;                     // [tokens]
    std::int64_t* load;                                // [experts]
    std::int32_t *used, *offsets;                      // [experts], [experts + 1]
    std::int64_t *first_place, *first_item;            // [experts + 1]
    std::int32_t *pair_of, *row_of;                    // [tokens * top_k]
    float *inner, *outer;                              // see `products_scratch`
    float *shared_inner = nullptr, *shared_outer = nullptr;

    constexpr pieces(carver& from, std::int64_t tokens) {
      std::int64_t const pairs = tokens * dims.top_k;
      mark = from.take<std::uint64_t>(1);
      if constexpr (!Layer::router_traits.precomputed) {
        logits = from.take<float>(tokens * dims.experts);
        sums = from.take<double>(switchyard::detail::auxiliary_doubles * dims.experts);
      }
      if constexpr (clustering.scales) {
        clusters.scale = from.take<float>(std::int64_t{dims.experts} * dims.hidden);
        clusters.dispersion = from.take<float>(std::int64_t{dims.experts} * dims.hidden);
        clusters.counted = from.take<std::uint8_t>(tokens);
        clusters.sums = from.take<double>(std::int64_t{dims.experts} * dims.hidden);
        clusters.counts = from.take<std::int32_t>(dims.experts);
        if constexpr (clustering.unit_rows) inverse_lengths = from.take<float>(dims.experts);
        if constexpr (clustering.experts_see_scaled) {
          scaled_tokens = from.take<typename Layer::element>(tokens * dims.hidden);
        }
      }
      experts = from.take<std::int32_t>(pairs);
      weights = from.take<float>(pairs);
      priority = from.take<float>(tokens);
      dropped = from.take<std::uint8_t>(pairs);
      if constexpr (Layer::capacity_traits.order == queue::priority) order = from.take<std::int32_t>(tokens);
      load = from.take<std::int64_t>(dims.experts);
      used = from.take<std::int32_t>(dims.experts);
      offsets = from.take<std::int32_t>(dims.experts + 1);
      first_place = from.take<std::int64_t>(dims.experts + 1);
      first_item = from.take<std::int64_t>(dims.experts + 1);
      pair_of = from.take<std::int32_t>(pairs);
      row_of = from.take<std::int32_t>(pairs);
      std::int64_t const places = detail::most_places(pairs, dims.experts);
      inner = from.take<float>(places * detail::row_floats(dims.intermediate));
      outer = from.take<float>(places * detail::row_floats(dims.hidden));
      if constexpr (shared_intermediate > 0) {
        std::int64_t const shared_places = detail::most_places(tokens, 1);
        shared_inner = from.take<float>(shared_places * detail::row_floats(shared_intermediate));
        shared_outer = from.take<float>(shared_places * detail::row_floats(dims.hidden));
      }
    }
  };

  /// Every temporary of a call of a stratified layer.
  template <class Layer>
  struct strata_pieces : detail::strata_record<typename Layer::element> {
    std::uint64_t* mark;            // of `workspace_use`
    typename Layer::element* rows;  // [tokens, hidden]: of one pass, its result in place of its tokens
    std::int32_t* experts;          // [tokens, top_k], and so on: what a pass decided
    float* weights;
    std::uint8_t* dropped;
    std::int64_t *counts, *load;  // [experts]
    std::span<std::byte> scratch;

    constexpr strata_pieces(carver& from, std::int64_t tokens) {
      constexpr shape dims = Layer::dims;
      constexpr stratification_traits form = Layer::router_traits.stratification;
      std::int64_t const pairs = tokens * dims.top_k, matrix = tokens * dims.hidden;
      mark = from.take<std::uint64_t>(1);
      this->token_of = from.take<std::int32_t>(tokens);
      this->stratum = from.take<std::uint8_t>(tokens);
      this->passes = from.take<std::uint8_t>(tokens);
      this->current = this->residual = from.take<typename Layer::element>(matrix);
      if constexpr (form.norms && !form.normalised_residual) {
        this->residual = from.take<typename Layer::element>(matrix);
      }
      this->experts_of = from.take<std::int32_t>(form.strata * pairs);
      this->weights_of = from.take<float>(form.strata * pairs);
      this->dropped_of = from.take<std::uint8_t>(form.strata * pairs);
      this->count_of = from.take<std::int64_t>(dims.experts);
      this->load_of = from.take<std::int64_t>(dims.experts);
      rows = from.take<typename Layer::element>(matrix);
      experts = from.take<std::int32_t>(pairs);
      weights = from.take<float>(pairs);
      dropped = from.take<std::uint8_t>(pairs);
      counts = from.take<std::int64_t>(dims.experts);
      load = from.take<std::int64_t>(dims.experts);
      std::size_t const bytes = scratch_bytes<Layer>(tokens, std::make_integer_sequence<int, form.strata>{});
      scratch = {from.take<std::byte>(static_cast<std::int64_t>(bytes)), bytes};
    }
  };

  /// What the largest pass needs.
  template <class Layer, int... Stratum>
  static constexpr std::size_t scratch_bytes(std::int64_t tokens, std::integer_sequence<int, Stratum...>) {
    return std::max({workspace_bytes<dispatch::pass_layer<Layer, Stratum>>(tokens)...});
  }

  template <class Layer>
  static constexpr detail::strata_shape strata_of{Layer::dims.hidden, Layer::dims.experts, Layer::dims.top_k,
                                                  Layer::router_traits.stratification.strata};

  /// A stratified layer, pass by pass. The output is written when all passes have succeeded.
  template <class Layer>
  static void forward_by_strata(forward_args<Layer> const& args, context const& where) {
    carver split(args.workspace.data());
    strata_pieces<Layer> p(split, args.tokens.rows);
    workspace_use const alone(p.mark);
    detail::begin_strata(strata_of<Layer>, args.tokens.rows, args.active, p);
    run_passes(args, where, p, std::make_integer_sequence<int, Layer::strata_or_one>{});
    detail::end_strata(strata_of<Layer>, args.output, args.active, args.decisions, args.auxiliary, where, p);
  }

  template <class Layer, int... Stratum>
  static void run_passes(forward_args<Layer> const& args, context const& where, strata_pieces<Layer>& p,
                         std::integer_sequence<int, Stratum...>) {
    (run_pass<Stratum>(args, where, p), ...);
  }

  template <int Stratum, class Layer>
  static void run_pass(forward_args<Layer> const& args, context const& where, strata_pieces<Layer>& p) {
    using pass = dispatch::pass_layer<Layer, Stratum>;
    constexpr int first_expert = Layer::router::first_expert(Stratum);
    std::int64_t const tokens = detail::gather_stratum(Stratum, args.tokens, Layer::dims.hidden, where, p, p.rows);
    if (tokens == 0) return;
    forward_args<pass> of_pass = dispatch::pass_args<Stratum>(args);
    auxiliary_values auxiliary;
    of_pass.tokens = pass::rows(static_cast<typename Layer::element const*>(p.rows), tokens);
    of_pass.output = pass::rows(p.rows, tokens);
    of_pass.workspace = p.scratch;
    of_pass.decisions = {
        .experts = p.experts, .weights = p.weights, .dropped = p.dropped, .counts = p.counts, .load = p.load};
    if (args.auxiliary != nullptr) of_pass.auxiliary = &auxiliary;
    forward_once(of_pass, where, {p.token_of, first_expert});
    layer_norm const* norms = nullptr;
    if constexpr (Layer::router_traits.stratification.norms) norms = args.weights.norm.after;
    detail::finish_pass<typename Layer::element>(
        {.stratum = Stratum,
         .first_expert = first_expert,
         .experts = pass::dims.experts,
         .top_k = pass::dims.top_k,
         .residual = args.residual,
         .rows = of_pass.output,
         .decided = of_pass.decisions,
         .norms = norms,
         .next_stratum = [](int expert) { return dispatch::next_stratum<Layer>(expert); }},
        strata_of<Layer>, where, p);
    if (args.auxiliary != nullptr) p.auxiliary.add(auxiliary);
  }

  /// The router's logits. With `adaptive_clustering` tokens are scaled by the weights of their clusters: the caller's, or
  /// those of the tokens at hand.
  template <class Layer>
  static void make_logits(forward_args<Layer> const& args, router_weights const& router, context const& where,
                          pieces<Layer> const& p) {
    constexpr shape dims = Layer::dims;
    constexpr clustering_traits form = Layer::router_traits.clustering;
    detail::router_product<typename Layer::element> product{args.tokens, dims.hidden, dims.experts, router.weight,
                                                            Layer::router_traits.bias ? router.bias : nullptr};
    if constexpr (form.scales) {
      if (where.unroutable == unroutable_tokens::throw_error) {
        detail::check_labels(args.clusters, args.tokens.rows, args.active, dims.experts);
      }
      float const* scale = args.clusters.feature_scale;
      if (scale == nullptr) {
        detail::make_feature_scale<form>(args.tokens, args.active, args.clusters, dims.hidden, dims.experts, where,
                                         p.clusters);
        scale = p.clusters.scale;
      }
      product.features = {scale, args.clusters.labels, args.clusters.choices, dims.experts, args.active};
      if constexpr (form.unit_rows) {
        detail::make_inverse_lengths(router.weight, dims.hidden, dims.experts, p.inverse_lengths);
        product.inverse_lengths = p.inverse_lengths;
      }
      if constexpr (form.experts_see_scaled) {
        detail::scale_tokens(args.tokens, product.features, dims.hidden, where, p.scaled_tokens);
      }
    }
    detail::make_logits(product, where, p.logits);
  }

  template <class Layer>
  static void combine(forward_args<Layer> const& args, context const& where, pieces<Layer> const& p) {
    constexpr expert_traits traits = Layer::expert_traits;
    typename Layer::element const* gate = nullptr;
    if constexpr (traits.gate == shared_gate::sigmoid) gate = args.weights.shared.gate;
    detail::combine<typename Layer::element>(
        {.tokens = args.tokens,
         .output = args.output,
         .hidden = Layer::dims.hidden,
         .top_k = Layer::dims.top_k,
         .active = args.active,
         .row_of = p.row_of,
         .weights = p.weights,
         .dropped_pairs = p.dropped,
         .outer = p.outer,
         .shared_outer = p.shared_outer,
         .shared_gate = gate,
         .scale = static_cast<float>(traits.scale_numerator) / static_cast<float>(traits.scale_denominator),
         .weighs_input = Layer::router_traits.weighs_input,
         .on_drop = Layer::capacity_traits.on_drop},
        where);
  }

  /// Copies what the caller wants to know. Nothing can fail from here on.
  template <class Layer>
  static void report(forward_args<Layer> const& args, pieces<Layer> const& p) {
    constexpr shape dims = Layer::dims;
    std::int64_t const tokens = args.tokens.rows, pairs = tokens * dims.top_k;
    decisions const& to = args.decisions;
    if (to.experts != nullptr) std::copy(p.experts, p.experts + pairs, to.experts);
    if (to.weights != nullptr) {
      for (std::int64_t pair = 0; pair < pairs; ++pair) to.weights[pair] = p.dropped[pair] ? 0.0f : p.weights[pair];
    }
    if (to.dropped != nullptr) std::copy(p.dropped, p.dropped + pairs, to.dropped);
    for (int e = 0; to.counts != nullptr && e < dims.experts; ++e) to.counts[e] = p.offsets[e + 1] - p.offsets[e];
    if (to.load != nullptr) std::copy(p.load, p.load + dims.experts, to.load);
    if (to.logits != nullptr) std::copy(p.logits, p.logits + tokens * dims.experts, to.logits);
    if constexpr (Layer::router_traits.clustering.scales) {
      constexpr std::int64_t table = std::int64_t{dims.experts} * dims.hidden;
      float const* const scale =
          args.clusters.feature_scale != nullptr ? args.clusters.feature_scale : p.clusters.scale;
      if (to.feature_scale != nullptr) std::copy(scale, scale + table, to.feature_scale);
      if (to.dispersion != nullptr) std::copy(p.clusters.dispersion, p.clusters.dispersion + table, to.dispersion);
    }
    if constexpr (!Layer::router_traits.precomputed) {
      if (args.auxiliary != nullptr) {
        routing_record const record{.tokens = tokens,
                                    .tokens_per_group = args.tokens_per_group,
                                    .logits = p.logits,
                                    .experts = p.experts,
                                    .weights = p.weights,
                                    .dropped = p.dropped,
                                    .active = args.active};
        *args.auxiliary = switchyard::detail::auxiliary_of(record, dims.experts, dims.top_k, p.sums);
      }
    }
  }
};

}  // namespace backend
}  // namespace switchyard
