#pragma once

#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/projection.hpp>
#include <switchyard/backend/cpu/route.hpp>
#include <switchyard/backend/cpu/steps.hpp>
#include <switchyard/backend/cpu/tile.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/expert/activation.hpp>
#include <switchyard/expert/rows.hpp>
#include <switchyard/layer.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>

/// Layers whose experts are rows: route, then the weighted sum of each token's rows. Nothing is planned, for a row serves any number of
/// tokens.
namespace switchyard::cpu {

/// What is done with rows that stand anywhere, of one instruction set: see rows.inl.
template <class Element>
struct sum_kernels {
  void (*widen)(Element const* from, std::int64_t columns, float* to);
  void (*add)(Element const* const* rows, float const* weights, int count, int columns, float* sum);
  float (*dot)(Element const* row, Element const* next, float const* x, int columns);
  void (*narrow)(float const* from, int columns, Element* to);
  void (*multiply)(float const* from, int columns, float* to);
};
template <class Element>
sum_kernels<Element> sum_kernels_of(instruction_set set) {
#if defined(__x86_64__)
  if (set >= instruction_set::avx512) {
    return {&avx512::widen_row<Element>, &avx512::add_rows<Element>, &avx512::dot_row<Element>,
            &avx512::narrow_row<Element>, &avx512::multiply_in_order<Element>};
  }
  if (set == instruction_set::avx2) {
    return {&avx2::widen_row<Element>, &avx2::add_rows<Element>, &avx2::dot_row<Element>, &avx2::narrow_row<Element>,
            &avx2::multiply_in_order<Element>};
  }
#else
  (void)set;
#endif
  return {&portable::widen_row<Element>, &portable::add_rows<Element>, &portable::dot_row<Element>,
          &portable::narrow_row<Element>, &portable::multiply_in_order<Element>};
}

/// The rows of a token's experts, some at a time: pointers to them and their weights, without those that go nowhere, and pointers to
/// rows that come next.
template <class Element, int Most>
struct gathered_rows {
  Element const* row[Most + rows_ahead];
  float weight[Most];
  int count = 0;

  void gather(view<Element const> const& table, std::int32_t const* experts, float const* weights, int choices,
              int begin) {
    count = 0;
    for (int k = 0; k < choices; ++k) {
      if (experts[k] < 0) continue;
      row[count] = table.row(experts[k]) + begin;
      weight[count++] = weights[k];
    }
  }
  void then(view<Element const> const& table, std::int32_t const* experts, int choices, int begin) {
    for (int k = 0; k < rows_ahead; ++k)
      row[count + k] = table.row(k < choices && experts[k] >= 0 ? experts[k] : 0) + begin;
  }
};

/// What the sum of rows reads and writes.
template <class Element>
struct row_sum {
  view<Element const> tokens, up, down;  ///< up: no data where experts have no hidden unit
  view<Element> output;
  int hidden, top_k;
  std::uint8_t const* active;
  std::int32_t const* experts;  ///< [tokens, top_k]
  float const* weights;         ///< [tokens, top_k]
  float* scaled;                ///< [tokens, top_k], weights times hidden units; null: weights are used as they are
  float* gate;                  ///< [tokens], factors of the output; null: none
  Element const* output_gate;   ///< [hidden]
  Element const* output_gate_bias;
  float* projected = nullptr;  ///< [tokens, hidden], multiplied by the sums, which do not go to output then; null: none
};

inline constexpr int gathered_at_once = 128, sum_columns = 2048;

/// scaled[t][k] = weight * activation(up row of expert k . token t), gate[t] = sigmoid(token t . output gate + bias).
template <class Activation, class Element>
void make_units(row_sum<Element> const& of, cpu_context const& context) {
  sum_kernels<Element> const kernels = sum_kernels_of<Element>(context.instructions);
  constexpr int choices_per_item = 32;
  int const items = static_cast<int>(divide_up(of.scaled != nullptr ? of.top_k : 1, choices_per_item));
  parallel_for(context, of.tokens.rows * items, [&](std::int64_t item) {
    std::int64_t const token = item / items;
    if (!is_active(of.active, token)) return;
    int const first = static_cast<int>(item % items) * choices_per_item;
    int const count = of.scaled == nullptr ? 0 : std::min(choices_per_item, of.top_k - first);
    float products[choices_per_item] = {}, of_gate = 0.0f, x[sum_columns];
    std::int32_t const* const experts = of.experts + token * of.top_k + first;
    for (int begin = 0; begin < of.hidden; begin += sum_columns) {
      int const columns = std::min(sum_columns, of.hidden - begin);
      kernels.widen(of.tokens.row(token) + begin, columns, x);
      auto const row_of = [&](int k) { return of.up.row(experts[k] < 0 ? 0 : experts[k]) + begin; };
      for (int k = 0; k < count; ++k) {
        if (experts[k] < 0) continue;
        products[k] += kernels.dot(row_of(k), row_of(k + 1 < count ? k + 1 : k), x, columns);
      }
      if (of.gate != nullptr && first == 0) {
        of_gate += kernels.dot(of.output_gate + begin, of.output_gate + begin, x, columns);
      }
    }
    for (int k = 0; k < count; ++k) {
      std::int64_t const pair = token * of.top_k + first + k;
      of.scaled[pair] = of.weights[pair] * (experts[k] < 0 ? 1.0f : Activation::apply(products[k]));
    }
    if (of.gate != nullptr && first == 0) {
      if (of.output_gate_bias != nullptr) of_gate += static_cast<float>(of.output_gate_bias[0]);
      of.gate[token] = 1.0f / (1.0f + std::exp(-of_gate));
    }
  });
}

/// output[t] = gate * sum over choices, in order, of weight * row. A pair that goes nowhere adds its weight: 0, or NaN where the token
/// could not be routed. A token that is not active gets zeros.
template <class Element>
void sum_rows(row_sum<Element> const& of, cpu_context context) {
  // To wake another worker takes longer than to read these.
  constexpr std::int64_t least_bytes = 128 * 1024;
  if (of.tokens.rows * of.top_k * of.hidden * static_cast<std::int64_t>(sizeof(Element)) <= least_bytes) {
    context.threads = 1;
  }
  sum_kernels<Element> const kernels = sum_kernels_of<Element>(context.instructions);
  float const* const weights = of.scaled != nullptr ? of.scaled : of.weights;
  // Few tokens are cut, so that all workers read.
  std::int64_t const wanted = std::max<std::int64_t>(
      divide_up(context.threads == 1 ? 1 : 4 * context.threads, std::max<std::int64_t>(of.tokens.rows, 1)),
      divide_up(of.hidden, sum_columns));
  int const columns = static_cast<int>(std::max<std::int64_t>(divide_up(divide_up(of.hidden, wanted), 256) * 256, 256));
  std::int64_t const pieces = divide_up(of.hidden, columns);
  parallel_for(context, of.tokens.rows * pieces, [&](std::int64_t item, std::int64_t next) {
    std::int64_t const token = item / pieces;
    int const begin = static_cast<int>(item % pieces) * columns, count = std::min(columns, of.hidden - begin);
    float sum[sum_columns];
    float start = 0.0f;
    for (int k = 0; k < of.top_k; ++k) {
      std::int64_t const pair = token * of.top_k + k;
      if (of.experts[pair] < 0 && is_active(of.active, token)) start += weights[pair];
    }
    std::fill(sum, sum + count, start);
    gathered_rows<Element, gathered_at_once> rows;
    for (int k = 0; k < of.top_k && is_active(of.active, token); k += gathered_at_once) {
      std::int64_t const pair = token * of.top_k + k;
      rows.gather(of.down, of.experts + pair, weights + pair, std::min(gathered_at_once, of.top_k - k), begin);
      int const later = k + gathered_at_once;
      if (later < of.top_k) {
        rows.then(of.down, of.experts + pair + gathered_at_once, of.top_k - later, begin);
      } else if (next < of.tokens.rows * pieces) {
        rows.then(of.down, of.experts + next / pieces * of.top_k, of.top_k, static_cast<int>(next % pieces) * columns);
      } else {
        rows.then(of.down, nullptr, 0, begin);
      }
      kernels.add(rows.row, rows.weight, rows.count, count, sum);
    }
    float const gate = of.gate != nullptr && is_active(of.active, token) ? of.gate[token] : 1.0f;
    if (of.projected != nullptr) return kernels.multiply(sum, count, of.projected + token * of.hidden + begin);
    for (int i = 0; of.gate != nullptr && i < count; ++i) sum[i] *= gate;
    kernels.narrow(sum, count, of.output.row(token) + begin);
  });
}

/// projected = silu(gate of tokens).
template <class Element>
void make_projection_gates(row_sum<Element> const& of, Element const* gate, Element const* bias,
                           cpu_context const& context) {
  map_rows(linear_map<Element, Element>{of.tokens, of.hidden, gate, bias}, context,
           [&](std::int64_t token, int first, int count, float const* values) {
             float* const to = of.projected + token * of.hidden + first;
             for (int i = 0; i < count; ++i) to[i] = silu::apply(values[i]);
           });
}

/// output = (projection of what stands in projected) * gate. A token that is not active gets zeros.
template <class Element>
void project_rows(row_sum<Element> const& of, Element const* projection, Element const* bias,
                  cpu_context const& context) {
  map_rows(linear_map<float, Element>{{of.projected, of.tokens.rows, of.hidden}, of.hidden, projection, bias}, context,
           [&](std::int64_t token, int first, int count, float const* values) {
             bool const active = is_active(of.active, token);
             float const gate = of.gate != nullptr && active ? of.gate[token] : 1.0f;
             Element* const to = of.output.row(token) + first;
             for (int i = 0; i < count; ++i) to[i] = Element(active ? values[i] * gate : 0.0f);
           });
}

/// A layer whose experts are rows.
template <>
struct schedule_step<expert::sum_of_rows> {
  template <class Layer>
  using routing = route_step<typename Layer::router::source>;
  template <class Layer>
  static constexpr bool has_units = requires {
    typename Layer::expert::activation;
  };

  template <class Layer>
  struct memory {
    typename routing<Layer>::template memory<Layer> of_routing;
    routes routed;
    float *scaled = nullptr, *gate = nullptr, *projected = nullptr;

    constexpr memory(carver& from, std::int64_t tokens)
        : of_routing(from, tokens),
          routed{from.take<std::int32_t>(tokens * Layer::dims.top_k), from.take<float>(tokens * Layer::dims.top_k),
                 from.take<float>(tokens)} {
      if constexpr (has_units<Layer>) scaled = from.take<float>(tokens * Layer::dims.top_k);
      if constexpr (Layer::expert::has_output_gate) gate = from.take<float>(tokens);
      if constexpr (Layer::expert::has_gated_projection) projected = from.take<float>(tokens * Layer::dims.hidden);
    }
  };

  template <class Layer>
  static void run(forward_args<Layer> const& args, cpu_context const& context, memory<Layer> const& m,
                  names const& called = {}) {
    route(args, context, m, called);
    plan(args, m);
    experts(args, context, m, tokens_of_experts(args, m));
  }

  template <class Layer>
  static void route(forward_args<Layer> const& args, cpu_context const& context, memory<Layer> const& m,
                    names const& called = {}) {
    routing<Layer>::template run<Layer>(args, context, m.of_routing, m.routed, called);
    routing<Layer>::template report<Layer>(args, m.of_routing);
  }

  /// Hands out what was decided; there is nothing to plan.
  template <class Layer>
  static void plan(forward_args<Layer> const& args, memory<Layer> const& m) {
    std::int64_t const pairs = args.tokens.rows * Layer::dims.top_k;
    decisions const& to = args.decisions;
    if (to.experts != nullptr) std::copy(m.routed.experts, m.routed.experts + pairs, to.experts);
    if (to.weights != nullptr) std::copy(m.routed.weights, m.routed.weights + pairs, to.weights);
    if (to.dropped != nullptr) std::fill(to.dropped, to.dropped + pairs, std::uint8_t{0});
    for (std::int64_t* count : {to.counts, to.load}) {
      if (count == nullptr) continue;
      std::fill(count, count + Layer::dims.experts, std::int64_t{0});
      for (std::int64_t pair = 0; pair < pairs; ++pair) {
        if (m.routed.experts[pair] >= 0) ++count[m.routed.experts[pair]];
      }
    }
  }

  template <class Layer>
  static view<typename Layer::element const> tokens_of_experts(forward_args<Layer> const& args,
                                                               memory<Layer> const& m) {
    return routing<Layer>::template tokens_of_experts<Layer>(args, m.of_routing);
  }

  template <class Layer>
  static void experts(forward_args<Layer> const& args, cpu_context const& context, memory<Layer> const& m,
                      view<typename Layer::element const> const& tokens) {
    auto const& w = args.weights;
    row_sum<typename Layer::element> of{};
    of.tokens = tokens;
    of.output = args.output;
    of.hidden = Layer::dims.hidden;
    of.top_k = Layer::dims.top_k;
    of.active = args.active;
    of.experts = m.routed.experts;
    of.weights = m.routed.weights;
    of.scaled = m.scaled;
    of.gate = m.gate;
    if constexpr (Layer::expert::has_output_gate) {
      of.output_gate = w.output_gate;
      of.output_gate_bias = w.output_gate_bias;
    }
    if constexpr (has_units<Layer>) {
      of.up = w.up;
      of.down = w.down;
      make_units<typename Layer::expert::activation>(of, context);
    } else {
      of.down = w.values;
      if constexpr (Layer::expert::has_output_gate) make_units<relu>(of, context);
    }
    if constexpr (Layer::expert::has_gated_projection) {
      of.projected = m.projected;
      make_projection_gates(of, w.projection_gate, w.projection_gate_bias, context);
    }
    sum_rows(of, context);
    if constexpr (Layer::expert::has_gated_projection) project_rows(of, w.projection, w.projection_bias, context);
  }
};

}  // namespace switchyard::cpu
