#pragma once

#include <switchyard/backend/cpu/expert_products.hpp>
#include <switchyard/backend/cpu/narrow_experts.hpp>
#include <switchyard/backend/cpu/steps.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/dispatch/plan.hpp>
#include <switchyard/expert/feed_forward.hpp>
#include <switchyard/layer.hpp>

#include <cstdint>
#include <string>
#include <type_traits>

/// Step 3 of `backend::cpu`: experts of feed-forward blocks.
namespace switchyard::cpu {

/// The experts of feed-forward blocks: rows of tokens to rows of results.
template <>
struct experts_step<expert::two_products> {
  /// The temporaries of a layer whose rows meet the matrices of `experts` experts.
  template <class Layer, int Experts>
  struct memory_of_experts {
    static constexpr shape dims = Layer::dims;
    static constexpr int shared_intermediate = Layer::expert_traits.shared_intermediate;

    std::int64_t *first_padded_row, *first_item;  // [experts + 1]
    float *activated, *results;                   // see `products_memory`
    float *shared_activated = nullptr, *shared_results = nullptr;
    apart_memory apart;

    constexpr memory_of_experts(carver& from, std::int64_t tokens) {
      std::int64_t const pairs = tokens * dims.top_k, padded_rows = most_padded_rows(pairs, Experts);
      first_padded_row = from.take<std::int64_t>(Experts + 1);
      first_item = from.take<std::int64_t>(Experts + 1);
      activated = from.take<float>(padded_rows * row_floats(dims.intermediate));
      results = from.take<float>(padded_rows * row_floats(dims.hidden));
      if constexpr (shared_intermediate > 0) {
        std::int64_t const shared_padded_rows = most_padded_rows(tokens, 1);
        shared_activated = from.take<float>(shared_padded_rows * row_floats(shared_intermediate));
        shared_results = from.take<float>(shared_padded_rows * row_floats(dims.hidden));
      }
      if constexpr (has_sparse_change<typename Layer::weights::in_operand>) {
        apart = {from, tokens, dims.top_k, dims.hidden, dims.intermediate};
      }
    }
    products_memory of_products() const { return {first_padded_row, first_item, activated, results, results, apart}; }
  };
  template <class Layer>
  using memory = memory_of_experts<Layer, Layer::dims.experts>;

  template <class Layer>
  static void check(forward_args<Layer> const&, cpu_context const& context) {
    constexpr bool integers = operand_codes<typename Layer::weights::in_operand>::exist &&
                              operand_codes<typename Layer::weights::out_operand>::exist &&
                              Layer::expert_traits.kept_units == 0;
    if (context.quantised == quantised_products::tokens_in_fp8) {
      fail("layer::forward, context.quantised", "quantised_products::exact or tokens_in_int8 (backend::hopper has fp8)",
           "tokens_in_fp8");
    }
    if (!integers && context.quantised != quantised_products::exact) {
      fail("layer::forward, context.quantised",
           "quantised_products::exact, or experts stored as q8_0, q4_0, q4_K, mxfp4, mxfp4_halves or int8_channel",
           "tokens_in_int8 with " + std::string(Layer::expert::name));
    }
  }

  /// `tokens` are what the experts see.
  template <class Layer>
  static expert_results<typename Layer::element> run(forward_args<Layer> const& args, cpu_context const& context,
                                                     view<typename Layer::element const> const& tokens,
                                                     dispatch_plan const& plan, float const* combine_weights,
                                                     memory<Layer> const& m) {
    constexpr expert_traits traits = Layer::expert_traits;
    auto weights = weights_of<Layer>(args.weights, [](auto const& operand) { return as_operand(operand); });
    if constexpr (traits.kept_units > 0) {
      weights.units = unit_kernels_of<typename Layer::element>(context.instructions);
    }
    expert_activation activation = activation_of<typename Layer::expert>(context.instructions);
    if constexpr (traits.ranking == unit_ranking::norm_compensated) activation.unit_norms = args.weights.unit_norms;
    if constexpr (may_be_narrow<Layer>) {
      narrow_products<typename Layer::element> const narrow =
          narrow_products_of<Layer>(tokens, plan, combine_weights, activation, weights);
      using element = typename Layer::element;
      auto const in = narrow_kernels_of<element>(context.instructions, Layer::dims.intermediate);
      auto const out = narrow_kernels_of<element>(context.instructions, Layer::dims.hidden);
      if (narrow.fit(in, out)) {
        // A token has at least `least_narrow_choices` rows, which there is memory for.
        constexpr std::int64_t stride = row_floats(Layer::dims.hidden);
        float* const sums = m.results + tokens.rows * stride;
        narrow_memory const memory{
            m.first_item, m.activated, m.results, {sums, tokens.rows, Layer::dims.hidden, stride}};
        run_narrow_products(narrow, in, out, context, memory);
        auto results = results_of<Layer>(args, context, tokens, m);
        results.token_sums = memory.sums;
        return results;
      }
    }
    run_products(context, row_ranges::of(plan.offsets, Layer::dims.experts),
                 rows_of<Layer>(tokens, plan, combine_weights), activation, weights, m.of_products());
    return results_of<Layer>(args, context, tokens, m);
  }

  /// Whether the experts are computed as narrow ones where their weights lie so: see narrow_experts.hpp.
  template <class Layer>
  static constexpr bool may_be_narrow =
      Layer::dims.intermediate <= most_narrow_units&& Layer::dims.top_k >= least_narrow_choices &&
      !Layer::expert_traits.bias && Layer::expert_traits.kept_units == 0 &&
      std::is_same_v<decltype(as_operand(typename Layer::weights{}.up_proj)), weight_view<typename Layer::element>>;

  template <class Layer>
  static narrow_products<typename Layer::element> narrow_products_of(
      view<typename Layer::element const> const& tokens, dispatch_plan const& plan, float const* combine_weights,
      expert_activation const& activation, expert_weights<weight_view<typename Layer::element>> const& weights) {
    constexpr expert_traits traits = Layer::expert_traits;
    return {.tokens = tokens,
            .offsets = plan.offsets,
            .pair_of = plan.pair_of,
            .experts = Layer::dims.experts,
            .top_k = Layer::dims.top_k,
            .hidden = Layer::dims.hidden,
            .intermediate = Layer::dims.intermediate,
            .activation = activation,
            .gate = weights.in.gate,
            .up = weights.in.up,
            .down = weights.down,
            .combine_weights = combine_weights,
            .weighs_input = Layer::router_traits.weighs_input,
            .scale = static_cast<float>(traits.scale_numerator) / static_cast<float>(traits.scale_denominator)};
  }

  /// The rows that the plan makes of tokens.
  template <class Layer>
  static token_rows<typename Layer::element> rows_of(view<typename Layer::element const> const& tokens,
                                                     dispatch_plan const& plan, float const* combine_weights) {
    return {tokens, plan.pair_of, Layer::dims.top_k, Layer::router_traits.weighs_input ? combine_weights : nullptr};
  }

  /// The routed experts' weights; `operand_of` makes the operand of a projection.
  template <class Layer, class Weights, class OperandOf>
  static auto weights_of(Weights const& from, OperandOf const& operand_of) {
    using operand = decltype(operand_of(from.up_proj));
    static_assert(std::is_same_v<operand, decltype(operand_of(from.down_proj))>,
                  "switchyard: the operands of an expert's two projections are of different types. Give both one type "
                  "that has both "
                  "formats.");
    expert_weights<operand> result{};
    if constexpr (Layer::expert_traits.gated) result.in.gate = operand_of(from.gate_proj);
    result.in.up = operand_of(from.up_proj);
    result.down = operand_of(from.down_proj);
    if constexpr (Layer::expert_traits.bias) {
      if constexpr (Layer::expert_traits.gated) result.in.gate_bias = as_operand(from.bias.gate);
      result.in.up_bias = as_operand(from.bias.up);
      result.down_bias = as_operand(from.bias.down);
    }
    result.hidden = Layer::dims.hidden;
    result.intermediate = Layer::dims.intermediate;
    return result;
  }

  /// What the routed experts have left in `m.results`, and the shared one leaves.
  template <class Layer, class Memory>
  static expert_results<typename Layer::element> results_of(forward_args<Layer> const& args, cpu_context const& context,
                                                            view<typename Layer::element const> const& tokens,
                                                            Memory const& m) {
    using element = typename Layer::element;
    constexpr expert_traits traits = Layer::expert_traits;
    expert_results<element> results{
        .rows = m.results,
        .scale = static_cast<float>(traits.scale_numerator) / static_cast<float>(traits.scale_denominator)};
    if constexpr (traits.output_bias) results.output_bias = args.weights.output_bias;
    if constexpr (traits.nulls.vectors() > 0) results.constant_experts.vectors = args.weights.constant_experts.vectors;
    if constexpr (traits.nulls.mixed_constant > 0) {
      results.constant_experts.mixing = args.weights.constant_experts.mixing;
    }
    if constexpr (traits.shared_intermediate > 0) {
      // One more expert, that every token visits.
      expert_weights<weight_view<element>> shared{};
      if constexpr (traits.gated) shared.in.gate = args.weights.shared.gate_proj;
      shared.in.up = args.weights.shared.up_proj;
      shared.down = args.weights.shared.down_proj;
      shared.hidden = Layer::dims.hidden;
      shared.intermediate = traits.shared_intermediate;
      std::int32_t const offsets[2] = {0, static_cast<std::int32_t>(tokens.rows)};
      run_products(context, row_ranges::of(offsets, 1), token_rows<element>{tokens},
                   activation_of<typename Layer::expert>(context.instructions), shared,
                   {m.first_padded_row, m.first_item, m.shared_activated, m.shared_results, m.shared_results, {}});
      results.shared_rows = m.shared_results;
      if constexpr (traits.gate == shared_gate::sigmoid) results.shared_gate = args.weights.shared.gate;
    }
    return results;
  }
};

}  // namespace switchyard::cpu
