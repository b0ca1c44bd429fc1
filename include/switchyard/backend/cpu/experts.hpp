#pragma once

#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/product.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/dispatch/plan.hpp>
#include <switchyard/layer.hpp>

#include <algorithm>
#include <cstdint>

/// Step 3 of `backend::cpu`: the two products of every expert over its rows. Work is cut into blocks of rows and
/// output features of one expert, so one busy expert keeps all workers busy; blocks that read the same weights
/// follow each other.
namespace switchyard::backend::detail {

/// The rows of some experts, cut into items.
struct row_blocks {
  std::int32_t const* offsets;  ///< [experts + 1]
  std::int32_t* first_block;    ///< [experts + 1], written by `count`: row blocks before each expert
  int experts;

  /// Number of row blocks over all experts.
  std::int64_t count() const {
    first_block[0] = 0;
    for (int e = 0; e < experts; ++e) {
      first_block[e + 1] =
          first_block[e] + static_cast<std::int32_t>(divide_up(offsets[e + 1] - offsets[e], block_rows));
    }
    return first_block[experts];
  }

  struct item {
    int expert;
    std::int64_t first_row;
    int rows;
    int column_block;
  };

  item at(std::int64_t index, int column_blocks) const {
    int low = 0, high = experts;  // the last expert whose blocks begin at or before the index
    while (high - low > 1) {
      int const middle = (low + high) / 2;
      (static_cast<std::int64_t>(first_block[middle]) * column_blocks <= index ? low : high) = middle;
    }
    std::int64_t const blocks = first_block[low + 1] - first_block[low];
    std::int64_t const local = index - static_cast<std::int64_t>(first_block[low]) * column_blocks;
    std::int64_t const first_row = offsets[low] + local % blocks * block_rows;
    return {low, first_row, static_cast<int>(std::min<std::int64_t>(block_rows, offsets[low + 1] - first_row)),
            static_cast<int>(local / blocks)};
  }
};

/// What the first product reads: the weights of one kind of expert.
template <class Element>
struct input_projection {
  weight_view<Element> gate, up;
  bias_view<Element> gate_bias, up_bias;  ///< null data: no bias
};

/// inner[row][i] = activation of the gate and up products (or of the up product) of feature i, for one block.
///
/// `row_weight` scales the products of a row where the router weighs the input: W (w x) = w (W x).
template <class Expert, class Element>
void project_in(instruction_set set, Element const* const* rows, float const* row_weight, int row_count,
                input_projection<Element> const& weights, std::int64_t expert, int first, int width, int hidden,
                Element* inner, std::int64_t inner_stride) {
  constexpr bool gated = Expert::traits.gated;
  using activation = typename Expert::activation;
  constexpr int up_at = gated ? block_columns / 2 : 0;
  float sums[block_rows * block_columns];
  for (int i = 0; i < row_count * block_columns; ++i) sums[i] = 0.0f;
  if constexpr (gated) {
    add_product(set, rows, row_count, weights.gate, expert, first, width, hidden, sums, block_columns);
  }
  add_product(set, rows, row_count, weights.up, expert, first, width, hidden, sums + up_at, block_columns);

  auto const bias_at = [&](bias_view<Element> const& bias, int i) {
    return static_cast<float>(bias.data[expert * bias.expert_stride + (first + i) * bias.stride]);
  };
  for (int r = 0; r < row_count; ++r) {
    float const* const row = sums + r * block_columns;
    float const weight = row_weight == nullptr ? 1.0f : row_weight[r];
    for (int i = 0; i < width; ++i) {
      float up = weight * row[up_at + i];
      if (weights.up_bias.data != nullptr) up += bias_at(weights.up_bias, i);
      float value;
      if constexpr (gated) {
        float gate = weight * row[i];
        if (weights.gate_bias.data != nullptr) gate += bias_at(weights.gate_bias, i);
        value = activation::apply(gate, up);
      } else {
        value = activation::apply(up);
      }
      inner[r * inner_stride + first + i] = Element(value);
    }
  }
}

/// outer[row][h] = down product of feature h (+ bias), in float, for one block.
template <class Element>
void project_out(instruction_set set, Element const* inner, std::int64_t inner_stride, int row_count,
                 weight_view<Element> down, bias_view<Element> bias, std::int64_t expert, int first, int width,
                 int intermediate, float* outer, std::int64_t outer_stride) {
  Element const* rows[block_rows];
  for (int r = 0; r < row_count; ++r) {
    rows[r] = inner + r * inner_stride;
    float* const to = outer + r * outer_stride + first;
    for (int h = 0; h < width; ++h) {
      to[h] = bias.data == nullptr
                  ? 0.0f
                  : static_cast<float>(bias.data[expert * bias.expert_stride + (first + h) * bias.stride]);
    }
  }
  add_product(set, rows, row_count, down, expert, first, width, intermediate, outer + first, outer_stride);
}

/// Both products over all rows of `blocks`. `rows_of(first, count, rows, weight)` says where rows come from.
template <class Expert, bool WeighsInput, class Element, class RowsOf>
void run_products(cpu_context const& where, row_blocks const& blocks, RowsOf const& rows_of,
                  input_projection<Element> const& in, weight_view<Element> down, bias_view<Element> down_bias,
                  int hidden, int intermediate, Element* inner, float* outer) {
  constexpr int in_width = block_columns / Expert::traits.input_projections();
  int const in_blocks = static_cast<int>(divide_up(intermediate, in_width));
  int const out_blocks = static_cast<int>(divide_up(hidden, block_columns));
  std::int64_t const count = blocks.count();
  parallel_for(where, count * in_blocks, [&](std::int64_t index) {
    row_blocks::item const item = blocks.at(index, in_blocks);
    Element const* rows[block_rows];
    float weight[block_rows];
    rows_of(item.first_row, item.rows, rows, weight);
    int const first = item.column_block * in_width;
    project_in<Expert>(where.instructions, rows, WeighsInput ? weight : nullptr, item.rows, in, item.expert, first,
                       std::min(in_width, intermediate - first), hidden, inner + item.first_row * intermediate,
                       intermediate);
  });
  parallel_for(where, count * out_blocks, [&](std::int64_t index) {
    row_blocks::item const item = blocks.at(index, out_blocks);
    int const first = item.column_block * block_columns;
    project_out(where.instructions, inner + item.first_row * intermediate, intermediate, item.rows, down, down_bias,
                item.expert, first, std::min(block_columns, hidden - first), intermediate,
                outer + item.first_row * hidden, hidden);
  });
}

/// Runs the routed experts over the plan's rows. `block_scratch` is [experts + 1].
template <class Layer>
void run_experts(forward_args<Layer> const& args, cpu_context const& where, dispatch_plan const& plan,
                 std::int32_t* block_scratch, float const* weights, typename Layer::element* inner, float* outer) {
  using element = typename Layer::element;
  input_projection<element> in{};
  bias_view<element> down_bias{};
  in.up = args.weights.up_proj;
  if constexpr (Layer::expert_traits.gated) in.gate = args.weights.gate_proj;
  if constexpr (Layer::expert_traits.bias) {
    in.up_bias = args.weights.bias.up;
    if constexpr (Layer::expert_traits.gated) in.gate_bias = args.weights.bias.gate;
    down_bias = args.weights.bias.down;
  }
  auto const rows_of = [&](std::int64_t first, int count, element const** rows, float* weight) {
    for (int r = 0; r < count; ++r) {
      std::int32_t const pair = plan.pair_of[first + r];
      rows[r] = args.tokens.row(pair / Layer::dims.top_k);
      weight[r] = weights[pair];
    }
  };
  run_products<typename Layer::expert, Layer::router_traits.weighs_input>(
      where, row_blocks{plan.offsets, block_scratch, Layer::dims.experts}, rows_of, in, args.weights.down_proj,
      down_bias, Layer::dims.hidden, Layer::dims.intermediate, inner, outer);
}

/// Runs the shared expert: one more expert that every token visits.
template <class Layer>
void run_shared_expert(forward_args<Layer> const& args, cpu_context const& where, typename Layer::element* inner,
                       float* outer) {
  using element = typename Layer::element;
  input_projection<element> in{};
  in.up = args.weights.shared.up_proj;
  if constexpr (Layer::expert_traits.gated) in.gate = args.weights.shared.gate_proj;
  std::int32_t const offsets[2] = {0, static_cast<std::int32_t>(args.tokens.rows)};
  std::int32_t block_scratch[2];
  auto const rows_of = [&](std::int64_t first, int count, element const** rows, float*) {
    for (int r = 0; r < count; ++r) rows[r] = args.tokens.row(first + r);
  };
  run_products<typename Layer::expert, false>(where, row_blocks{offsets, block_scratch, 1}, rows_of, in,
                                              args.weights.shared.down_proj, bias_view<element>{}, Layer::dims.hidden,
                                              Layer::expert_traits.shared_intermediate, inner, outer);
}

}  // namespace switchyard::backend::detail
