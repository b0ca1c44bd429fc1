#pragma once

#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/experts.hpp>
#include <switchyard/backend/cpu/low_rank_terms.hpp>
#include <switchyard/backend/cpu/steps.hpp>
#include <switchyard/core/operand.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/dispatch/plan.hpp>
#include <switchyard/expert/low_rank_terms.hpp>
#include <switchyard/layer.hpp>

#include <cstdint>

/// Step 3 of `backend::cpu` where rows have terms of low rank beside their products.
namespace switchyard::cpu {

template <>
struct experts_step<expert::low_rank_products> {
  using products = experts_step<expert::two_products>;
  template <class Layer>
  static constexpr int matrices = runs_as_one<Layer> ? 1 : Layer::dims.experts;
  template <class Layer>
  static constexpr std::int64_t entries = Layer::expert::template entries<Layer>;

  template <class Layer>
  struct memory : products::template memory_of_experts<Layer, matrices<Layer>> {
    std::int32_t *wide_of, *tall_of, *by_wide;   // [pairs]
    std::int32_t* first_of;                      // [entries + 2]
    float *scale_of, *inner;                     // [pairs], [pairs, row_floats(intermediate)]
    float *narrow_gate = nullptr, *narrow_up;    // [pairs, narrow_floats(rank)]
    float *gate_columns = nullptr, *up_columns;  // [rank, narrow_stride(pairs)]

    constexpr memory(carver& from, std::int64_t tokens)
        : products::template memory_of_experts<Layer, matrices<Layer>>(from, tokens) {
      std::int64_t const pairs = tokens * Layer::dims.top_k;
      wide_of = from.take<std::int32_t>(pairs);
      tall_of = from.take<std::int32_t>(pairs);
      by_wide = from.take<std::int32_t>(pairs);
      first_of = from.take<std::int32_t>(entries<Layer> + 2);
      scale_of = from.take<float>(pairs);
      inner = from.take<float>(pairs * row_floats(Layer::dims.intermediate));
      constexpr int rank = Layer::expert::rank;
      narrow_up = from.take<float>(pairs * narrow_floats(rank));
      up_columns = from.take<float>(rank * narrow_stride(pairs));
      if (Layer::expert_traits.gated) {
        narrow_gate = from.take<float>(pairs * narrow_floats(rank));
        gate_columns = from.take<float>(rank * narrow_stride(pairs));
      }
    }
  };

  /// Throws where a token names an entry that there is not, unless the context wants NaN of it.
  template <class Layer>
  static void check(forward_args<Layer> const& args, cpu_context const& context) {
    if constexpr (requires { Layer::expert::template check_entries<Layer>(args); }) {
      if (context.unroutable == unroutable_tokens::throw_error) Layer::expert::template check_entries<Layer>(args);
    }
  }

  template <class Layer>
  static expert_results<typename Layer::element> run(forward_args<Layer> const& args, cpu_context const& context,
                                                     view<typename Layer::element const> const& tokens,
                                                     dispatch_plan const& plan, float const* combine_weights,
                                                     memory<Layer> const& m) {
    using element = typename Layer::element;
    auto const& w = args.weights;
    std::int32_t const rows = plan.offsets[Layer::dims.experts], all_rows[2] = {0, rows};
    name_entries(args, plan, m);
    low_rank_terms<element> terms{};
    if constexpr (Layer::expert_traits.gated)
      terms.gate = {w.gate_proj.change.factors(), m.narrow_gate, m.gate_columns};
    terms.up = {w.up_proj.change.factors(), m.narrow_up, m.up_columns};
    terms.down = {w.down_proj.change.factors(), m.narrow_up, m.up_columns};
    terms.kernels = term_kernels_of<element>(context.instructions);
    terms.rank = Layer::expert::rank;
    terms.inner_stride = row_floats(Layer::dims.intermediate);
    terms.rows = rows;
    terms.entries = entries<Layer>;
    terms.wide_of = m.wide_of;
    terms.tall_of = m.tall_of;
    terms.scale_of = m.scale_of;
    terms.by_wide = m.by_wide;
    terms.first_of = m.first_of;
    terms.inner = m.inner;
    run_products(context, row_ranges::of(runs_as_one<Layer> ? all_rows : plan.offsets, matrices<Layer>),
                 products::template rows_of<Layer>(tokens, plan, combine_weights),
                 activation_of<typename Layer::expert>(context.instructions),
                 products::template weights_of<Layer>(w, [](auto const& operand) { return as_operand(operand.base); }),
                 m.of_products(), terms);
    return products::template results_of<Layer>(args, context, tokens, m);
  }

 private:
  /// Which factors every row of the plan has.
  template <class Layer>
  static void name_entries(forward_args<Layer> const& args, dispatch_plan const& plan, memory<Layer> const& m) {
    auto const entries_of_rows = Layer::expert::template entries_of<Layer>(args);
    for (int e = 0; e < Layer::dims.experts; ++e) {
      for (std::int32_t row = plan.offsets[e]; row < plan.offsets[e + 1]; ++row) {
        low_rank_entry const entry = entries_of_rows.of(e, plan.pair_of[row] / Layer::dims.top_k);
        m.wide_of[row] = entry.wide;
        m.tall_of[row] = entry.tall;
        m.scale_of[row] = entry.scale;
      }
    }
  }
};

}  // namespace switchyard::cpu
