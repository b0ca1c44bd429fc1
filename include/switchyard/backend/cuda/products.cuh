#pragma once

#include <switchyard/backend/backend_policy.hpp>
#include <switchyard/backend/cuda/alignment.cuh>
#include <switchyard/backend/cuda/grouped_gemm.cuh>
#include <switchyard/backend/cuda/half_rows.cuh>
#include <switchyard/backend/cuda/keep_largest.cuh>
#include <switchyard/backend/cuda/launch.cuh>
#include <switchyard/backend/cuda/steps.cuh>
#include <switchyard/backend/cuda/temporaries.cuh>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/operand.hpp>
#include <switchyard/core/shape.hpp>
#include <switchyard/core/view.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/expert/feed_forward.hpp>
#include <switchyard/layer.hpp>

#include <cstdint>
#include <type_traits>
#include <utility>

/// How `backend::cuda` launches the two products.
namespace switchyard::cuda {

/// What the routed experts' matrices are.
template <class Layer>
struct operand_of_layer {
  using type = decltype(as_operand(std::declval<typename Layer::weights const&>().up_proj));
};
template <class Layer>
requires(expert_storage<typename Layer::backend>::in_cache) struct operand_of_layer<Layer> {
  using type = decltype(as_operand(
      std::declval<typename Layer::expert::template operand<typename Layer::element, projection::in> const&>()));
};
template <class Layer>
using operand_of = typename operand_of_layer<Layer>::type;
template <class Layer>
using in_product = product_in<operand_of<Layer>, typename Layer::expert::activation, Layer::expert_traits.gated>;
template <class Layer>
using out_product = product_out<operand_of<Layer>>;

/// A matrix, and how it is read.
template <class T>
product_weights<weight_view<T>> weights_of(weight_view<T> const& v) {
  bool const chunks = v.column_stride == 1 && is_aligned(v.data, v.row_stride) && is_aligned(v.data, v.expert_stride);
  auto const size = [](std::int64_t stride) { return stride < 0 ? -stride : stride; };
  return {v, chunks                                       ? access::by_chunks
             : size(v.row_stride) < size(v.column_stride) ? access::along_rows
                                                          : access::along_columns};
}
template <class Operand>
product_weights<Operand> weights_of(Operand const& operand) {
  return {operand};
}

/// Rows that an expert has on average, rounded up.
template <class Layer>
std::int64_t rows_per_expert(std::int64_t tokens) {
  return divide_up(tokens * Layer::dims.top_k, Layer::all_experts);
}

/// One product with one tile.
template <class Problem, class Tile>
void enqueue_product(launch_queue const& queue, char const* what, typename Problem::args const& product_of) {
  using layout = product_layout<Problem, Tile>;
  constexpr int features = layout::features, rows = Tile::tile.rows;
  // Every expert's last tile may have one row; there are no more tiles than rows.
  std::int64_t const most_rows = product_of.experts.most, most = most_rows / rows + product_of.experts.count;
  std::int64_t const tiles = most < most_rows ? most : most_rows;
  std::int64_t const shared_tiles =
      divide_up(product_of.tokens, rows) * divide_up(product_of.shared.features, features);
  launch(queue, what, product<Problem, Tile>, tiles * divide_up(product_of.routed.features, features) + shared_tiles,
         layout::threads, layout::shared_bytes, product_of);
}

/// Both products with one tile. `between` enqueues what happens to the rows between them.
template <class In, class Out, class Tile, class Between>
void enqueue_products(launch_queue const& queue, typename In::args const& in, typename Out::args const& out,
                      Between const& between) {
  enqueue_product<In, Tile>(queue, "product (in)", in);
  between();
  enqueue_product<Out, Tile>(queue, "product (out)", out);
}

/// The products of `backend::cuda`.
struct portable_products {
  template <class Layer>
  static constexpr bool rounds_rows = false;

  /// Rows per expert, on average, up to which a tile of few rows is taken, and the one in between. No device has been
  /// measured yet. The limits are half of the first tile's rows and three quarters of the second one's: the rows of experts
  /// are spread about the average, and weights are read twice where they are more than a tile has.
  static constexpr int few = few_rows::tile.rows / 2, some = 48;

  template <class In, class Out, class Between>
  static void enqueue(launch_queue const& queue, std::int64_t rows, typename In::args const& in,
                      typename Out::args const& out, Between const& between) {
    if (rows <= few) {
      enqueue_products<In, Out, few_rows>(queue, in, out, between);
    } else if (rows <= some) {
      enqueue_products<In, Out, some_rows>(queue, in, out, between);
    } else {
      enqueue_products<In, Out, many_rows>(queue, in, out, between);
    }
  }

  template <class Layer, class Between>
  static void enqueue(launch_queue const& queue, product_args<operand_of<Layer>> const& in,
                      product_args<operand_of<Layer>> const& out, Between const& between) {
    enqueue<in_product<Layer>, out_product<Layer>>(queue, rows_per_expert<Layer>(in.tokens_of_call()), in, out,
                                                   between);
  }
};

/// The arguments of both products.
template <class Operand>
struct both_products {
  product_args<Operand> in, out;
};

/// The experts of feed-forward blocks: both products, over the rows of the plan. `Products` has them, as
/// `enqueue<Layer>(queue, in, out, between)`; `rounds_rows<Layer>`: they may multiply rows in E4M3.
template <class Products>
struct experts_step<expert::two_products, Products> {
  /// Temporaries depend on the element and sizes alone.
  template <class Element>
  struct rows_memory {
    std::int64_t activated_stride, results_stride, shared_activated_stride;
    Element *activated, *shared_activated = nullptr;  // [rows, activated_stride], [tokens, shared_activated_stride]
    summed_row<Element>*results, *shared_results = nullptr;  // [rows, results_stride], [tokens, results_stride]
    row_exponents exponents = {}, shared_exponents = {};     // of `activated` and `shared_activated`
    rounded_rows rounded = {};                               // of the tokens, then of `activated`

    constexpr rows_memory(shape const& dims, int shared_intermediate, carver& from, std::int64_t tokens)
        : activated_stride(padded<Element>(dims.intermediate)),
          results_stride(padded<Element>(dims.hidden)),
          shared_activated_stride(padded<Element>(shared_intermediate)) {
      std::int64_t const pairs = tokens * dims.top_k;
      activated = from.take<Element>(pairs * activated_stride);
      results = from.take<summed_row<Element>>(pairs * results_stride);
      auto const take_exponents = [&](std::int64_t count, int features) {
        int const each = exponents_of_row(features);
        return row_exponents{from.take<std::uint8_t>(count * each), exponents.any, each, count};
      };
      if constexpr (std::is_same_v<Element, half>) {
        exponents.any = from.take<std::int32_t>(1);
        exponents = take_exponents(pairs, dims.intermediate);
      }
      if (shared_intermediate > 0) {
        shared_activated = from.take<Element>(tokens * shared_activated_stride);
        shared_results = from.take<summed_row<Element>>(tokens * results_stride);
        if constexpr (std::is_same_v<Element, half>) shared_exponents = take_exponents(tokens, shared_intermediate);
      }
    }
  };
  template <class Layer>
  struct memory : rows_memory<typename Layer::element> {
    constexpr memory(carver& from, std::int64_t tokens)
        : rows_memory<typename Layer::element>(Layer::dims, Layer::expert_traits.shared_intermediate, from, tokens) {
      if constexpr (Products::template rounds_rows<Layer>) {
        constexpr shape dims = Layer::dims;
        std::int64_t const pairs = tokens * dims.top_k, in = tokens * dims.hidden, out = pairs * dims.intermediate;
        constexpr int widest = dims.hidden > dims.intermediate ? dims.hidden : dims.intermediate;
        this->rounded.codes = from.take<std::uint8_t>(in > out ? in : out);
        this->rounded.scales = from.take<float>(pairs * (widest / rounded_rows::group));
        this->rounded.pairs = pairs;
      }
    }

    /// What the plan clears for the products: 0 where no row has an exponent; null: it has nothing to clear.
    std::int32_t* to_clear() const { return this->exponents.any; }
    /// Not needed any more after the products, at least 16 bytes per token.
    double* spare() const { return reinterpret_cast<double*>(this->activated); }
  };

  /// `tokens` are what the experts see.
  template <class Layer>
  static expert_results<typename Layer::element> enqueue(forward_args<Layer> const& args, launch_queue const& queue,
                                                         view<typename Layer::element const> const& tokens,
                                                         plan_memory const& plan, memory<Layer> const& m,
                                                         pass_size const* pass) {
    auto products = products_of<Layer>(args, tokens, plan, m);
    products.in.routed.rounded.pass = pass;
    Products::template enqueue<Layer>(queue, products.in, products.out, [&] {
      enqueue_between<Layer>(args, queue, m, {.experts = Layer::dims.experts, .offsets = plan.plan.offsets},
                             tokens.rows * Layer::dims.top_k);
    });
    return results_of<Layer>(args, m);
  }

  /// What happens to the rows of a launch between the products; it has at most so many.
  template <class Layer>
  static void enqueue_between(forward_args<Layer> const& args, launch_queue const& queue,
                              rows_memory<typename Layer::element> const& m, listed_rows const& listed,
                              std::int64_t most_rows) {
    constexpr expert_traits traits = Layer::expert_traits;
    if constexpr (traits.kept_units > 0) {
      constexpr bool compensated = traits.ranking == unit_ranking::norm_compensated;
      inner_rows<typename Layer::element> rows{.first = m.activated,
                                               .stride = m.activated_stride,
                                               .features = Layer::dims.intermediate,
                                               .exponents = m.exponents,
                                               .listed = listed,
                                               .unit_norms = nullptr};
      if constexpr (compensated) rows.unit_norms = args.weights.unit_norms;
      enqueue_keep_largest<Layer::dims.intermediate, compensated>(queue, rows, most_rows, traits.kept_units);
    }
  }

  /// What both products leave.
  template <class Layer>
  static expert_results<typename Layer::element> results_of(forward_args<Layer> const& args,
                                                            rows_memory<typename Layer::element> const& m) {
    constexpr expert_traits traits = Layer::expert_traits;
    expert_results<typename Layer::element> results{
        .rows = m.results,
        .shared_rows = m.shared_results,
        .stride = m.results_stride,
        .scale = static_cast<float>(traits.scale_numerator) / static_cast<float>(traits.scale_denominator)};
    if constexpr (traits.gate == shared_gate::sigmoid) results.shared_gate = args.weights.shared.gate;
    if constexpr (traits.output_bias) results.output_bias = args.weights.output_bias;
    if constexpr (traits.nulls.vectors() > 0) results.constant_experts.vectors = args.weights.constant_experts.vectors;
    if constexpr (traits.nulls.mixed_constant > 0) {
      results.constant_experts.mixing = args.weights.constant_experts.mixing;
    }
    return results;
  }

  /// The arguments of both products of a call.
  template <class Layer>
  static both_products<operand_of<Layer>> products_of(forward_args<Layer> const& args,
                                                      view<typename Layer::element const> const& tokens,
                                                      plan_memory const& plan, memory<Layer> const& m) {
    return products_of(args, args.weights, tokens, plan, m, [](auto const& operand) { return as_operand(operand); });
  }
  /// The same; `routed` has the projections and biases of the routed experts, `operand_of` makes the operand of a projection.
  template <class Layer, class Routed, class OperandOf>
  static auto products_of(forward_args<Layer> const& args, Routed const& routed,
                          view<typename Layer::element const> const& tokens, plan_memory const& plan,
                          rows_memory<typename Layer::element> const& m, OperandOf const& operand_of) {
    constexpr expert_traits traits = Layer::expert_traits;
    typename Layer::weights const& w = args.weights;
    using operand = decltype(operand_of(routed.up_proj));
    static_assert(std::is_same_v<operand, decltype(operand_of(routed.down_proj))>,
                  "switchyard: the operands of an expert's two projections are of different types. Give both one type "
                  "that has both "
                  "formats.");
    both_products<operand> result{};
    auto& [in, out] = result;
    frame<Layer>(in, tokens, plan);
    frame<Layer>(out, tokens, plan);
    if constexpr (Layer::router_traits.weighs_input) in.weights = plan.weights;
    set_rows(in.routed, Layer::dims.hidden, Layer::dims.intermediate, tokens.data, tokens.row_stride, m.activated,
             m.activated_stride, m.exponents);
    in.routed.reading = is_aligned(tokens) ? access::by_chunks : access::along_columns;
    in.routed.weight = weights_of(operand_of(routed.up_proj));
    if constexpr (traits.gated) in.routed.gate = weights_of(operand_of(routed.gate_proj));
    set_rows(out.routed, Layer::dims.intermediate, Layer::dims.hidden, m.activated, m.activated_stride, m.results,
             m.results_stride, m.exponents);
    out.routed.weight = weights_of(operand_of(routed.down_proj));
    in.routed.rounded = out.routed.rounded = m.rounded;
    in.routed.rounded.row_of = plan.plan.row_of;
    if constexpr (traits.bias) {
      if constexpr (traits.gated) in.routed.gate_bias = as_operand(routed.bias.gate);
      in.routed.bias = as_operand(routed.bias.up);
      out.routed.bias = as_operand(routed.bias.down);
    }
    if constexpr (traits.shared_intermediate > 0) {
      set_rows(in.shared, Layer::dims.hidden, traits.shared_intermediate, tokens.data, tokens.row_stride,
               m.shared_activated, m.shared_activated_stride, m.shared_exponents);
      in.shared.reading = in.routed.reading;
      in.shared.weight = weights_of(as_operand(w.shared.up_proj));
      if constexpr (traits.gated) in.shared.gate = weights_of(as_operand(w.shared.gate_proj));
      set_rows(out.shared, traits.shared_intermediate, Layer::dims.hidden, m.shared_activated,
               m.shared_activated_stride, m.shared_results, m.results_stride, m.shared_exponents);
      out.shared.weight = weights_of(as_operand(w.shared.down_proj));
    }
    return result;
  }

 private:
  template <class Layer, class Operand>
  static void frame(product_args<Operand>& to, view<typename Layer::element const> const& tokens,
                    plan_memory const& plan) {
    to.experts =
        expert_rows::of_plan(plan.plan.offsets, Layer::dims.experts, tokens.rows * std::int64_t{Layer::dims.top_k});
    to.top_k = Layer::dims.top_k;
    to.pair_of = plan.plan.pair_of;
    to.tokens = tokens.rows;
  }
  template <class Element>
  static void set_rows(side_rows<Element>& to, int depth, int features, std::type_identity_t<Element> const* rows,
                       std::int64_t row_stride, void* result, std::int64_t result_stride,
                       row_exponents const& exponents) {
    to.depth = depth;
    to.features = features;
    to.rows = rows;
    to.row_stride = row_stride;
    to.reading = access::by_chunks;
    to.result = result;
    to.result_stride = result_stride;
    to.exponents = exponents;
  }
};

}  // namespace switchyard::cuda
