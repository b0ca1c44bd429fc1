#pragma once

#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/panels.hpp>
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

/// The rows of some experts, and how they are cut into items. An expert with at least `least_panel_rows` rows is computed by
/// panels (panels.hpp); its rows then have places up to a multiple of `lanes`.
struct expert_rows {
  std::int32_t const* offsets;  ///< [experts + 1]
  std::int64_t* first_place;    ///< [experts + 1], written by `set_places`
  std::int64_t* first_item;     ///< [experts + 1], written by `count`
  int experts;
  int least_panel_rows, lanes;

  std::int64_t rows(int e) const { return offsets[e + 1] - offsets[e]; }
  bool by_panels(int e) const { return rows(e) >= least_panel_rows; }

  /// Whether any expert is computed by panels.
  bool set_places() const {
    bool any = false;
    first_place[0] = 0;
    for (int e = 0; e < experts; ++e) {
      any = any || by_panels(e);
      first_place[e + 1] = first_place[e] + (by_panels(e) ? divide_up(rows(e), lanes) * lanes : rows(e));
    }
    return any;
  }

  /// Number of items over all experts, expert e having `items(e)`.
  template <class Items>
  std::int64_t count(Items const& items) const {
    first_item[0] = 0;
    for (int e = 0; e < experts; ++e) first_item[e + 1] = first_item[e] + items(e);
    return first_item[experts];
  }

  /// Rows of one expert, and the number of the block of features that they meet.
  struct item {
    int expert;
    std::int64_t first_row;  ///< among those of the expert
    int rows;
    int feature_block;
  };
  /// The item at an index below the last count, if items of an expert have so many rows at most. Items that read the same
  /// weights follow each other.
  item at(std::int64_t index, int rows_one_by_one, int rows_in_panels) const {
    int low = 0, high = experts;  // the last expert whose items begin at or before the index
    while (high - low > 1) {
      int const middle = (low + high) / 2;
      (first_item[middle] <= index ? low : high) = middle;
    }
    int const most = by_panels(low) ? rows_in_panels : rows_one_by_one;
    std::int64_t const number = index - first_item[low], blocks = divide_up(rows(low), most);
    std::int64_t const first = number % blocks * most;
    return {low, first, static_cast<int>(std::min<std::int64_t>(most, rows(low) - first)),
            static_cast<int>(number / blocks)};
  }
};

/// So many rows at most that all experts together have places for, when there are `rows` rows.
constexpr std::int64_t most_places(std::int64_t rows, int experts) {
  constexpr std::int64_t lanes = 16;  // of the widest instructions; an expert computed by panels has so many rows
  std::int64_t const with_panels = rows / lanes < experts ? rows / lanes : experts;
  return rows + with_panels * (lanes - 1);
}

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

/// Features of one item that is computed by panels: of an output feature, or of a gate and an up feature each.
template <class Element>
int panel_block_features(panel_functions<Element> const& with, int projections) {
  return with.block_tiles / projections * with.features;
}

/// Gate and up products of some features and their activations, in the places of a panel's depth: what `project_panels_out`
/// takes in. `row_weight` is null or has a factor for every place of a row.
template <class Expert, class Element>
void project_panels_in(instruction_set set, panel_functions<Element> const& with, panel_rows const& tokens,
                       float const* row_weight, input_projection<Element> const& weights, std::int64_t expert,
                       int first, int hidden, int intermediate, float* inner) {
  constexpr bool gated = Expert::traits.gated;
  int const half = gated ? with.block_tiles / 2 : with.block_tiles;
  alignas(64) float sums[most_sums];
  feature_tile<Element> tiles[most_tiles] = {};
  auto const set_tile = [&](int t, weight_view<Element> const& matrix, int feature) {
    int const count = std::max(0, std::min(with.features, intermediate - feature));
    tiles[t] = {matrix.data + expert * matrix.expert_stride + feature * matrix.row_stride, matrix.row_stride,
                matrix.column_stride, count};
  };
  // Gate and up tiles take turns, so that those without features come last.
  constexpr int step = gated ? 2 : 1;
  for (int t = 0; t < half; ++t) {
    if constexpr (gated) set_tile(2 * t, weights.gate, first + t * with.features);
    set_tile(step * t + step - 1, weights.up, first + t * with.features);
  }
  multiply_panels(with, tiles, tokens, hidden, sums);

  auto const bias_at = [&](bias_view<Element> const& bias, int feature) {
    return bias.data == nullptr ? 0.0f
                                : static_cast<float>(bias.data[expert * bias.expert_stride + feature * bias.stride]);
  };
  for (int t = 0; t < half; ++t) {
    for (int f = 0; f < tiles[step * t].features; ++f) {
      int const feature = first + t * with.features + f;
      float const up_bias = bias_at(weights.up_bias, feature), gate_bias = bias_at(weights.gate_bias, feature);
      for (int p = 0; p < tokens.count(); ++p) {
        int const width = tokens.width_of(p);
        float const* const up = sums_at(with, sums, step * t + step - 1, p) + f * width;
        float const* const gate = sums_at(with, sums, step * t, p) + f * width;
        float values[most_panel_width];
        activate<Expert>(set, gate, up, row_weight == nullptr ? nullptr : row_weight + p * tokens.width, gate_bias,
                         up_bias, width, values);
        with.put(values, width, feature, intermediate,
                 inner + std::int64_t{p} * tokens.width * panel_floats(intermediate));
      }
    }
  }
}

/// outer[row][h] = down product of some features h (+ bias), in float.
template <class Element>
void project_panels_out(panel_functions<Element> const& with, panel_rows const& inner, weight_view<Element> down,
                        bias_view<Element> bias, std::int64_t expert, int first, int hidden, int intermediate,
                        float* outer) {
  alignas(64) float sums[most_sums];
  feature_tile<Element> tiles[most_tiles] = {};
  for (int t = 0; t < with.block_tiles; ++t) {
    int const feature = first + t * with.features;
    tiles[t] = {down.data + expert * down.expert_stride + feature * down.row_stride, down.row_stride,
                down.column_stride, std::max(0, std::min(with.features, hidden - feature))};
  }
  multiply_panels(with, tiles, inner, intermediate, sums);
  int const features = std::min(with.block_tiles * with.features, hidden - first);
  float biases[most_block_features] = {};
  for (int f = 0; f < features && bias.data != nullptr; ++f) {
    biases[f] = static_cast<float>(bias.data[expert * bias.expert_stride + (first + f) * bias.stride]);
  }
  for (int p = 0; p < inner.count(); ++p) {
    int const width = inner.width_of(p);
    for (int i = 0; i < inner.rows_of(p); ++i) {
      float* const to = outer + (std::int64_t{p} * inner.width + i) * hidden + first;
      for (int t = 0; t < with.block_tiles; ++t) {
        float const* const from = sums_at(with, sums, t, p) + i;
        int const begin = t * with.features;
        for (int f = 0; f < tiles[t].features; ++f) to[begin + f] = from[f * width] + biases[begin + f];
      }
    }
  }
}

/// Both products over all rows. `rows_of(first, count, rows, weight)` says where rows come from. `inner` has room for
/// `most_places` rows of `panel_floats(intermediate)` floats, `outer` for as many of `panel_floats(hidden)`: until the first product is done, it has the
/// panels of the tokens.
template <class Expert, bool WeighsInput, class Element, class RowsOf>
void run_products(cpu_context const& where, panel_functions<Element> const& with, expert_rows const& all,
                  RowsOf const& rows_of, input_projection<Element> const& in, weight_view<Element> down,
                  bias_view<Element> down_bias, int hidden, int intermediate, float* inner, float* outer) {
  constexpr int projections = Expert::traits.input_projections();
  constexpr int in_width = block_columns / projections;
  int const rows_in_panels = with.block_panels * with.width;
  std::int64_t const inner_floats = panel_floats(intermediate), panels_floats = panel_floats(hidden);
  auto const inner_of = [&](int e, std::int64_t row) { return inner + (all.first_place[e] + row) * inner_floats; };
  auto const panels_of = [&](int e, std::int64_t row) { return outer + (all.first_place[e] + row) * panels_floats; };
  // For a product of so many features, cut into blocks of so many.
  auto const count_items = [&](int features, int by_rows, int by_panels) {
    return all.count([&](int e) {
      return all.by_panels(e) ? divide_up(all.rows(e), rows_in_panels) * divide_up(features, by_panels)
                              : divide_up(all.rows(e), block_rows) * divide_up(features, by_rows);
    });
  };

  if (all.set_places()) {
    auto const panels = all.count([&](int e) { return all.by_panels(e) ? divide_up(all.rows(e), with.width) : 0; });
    parallel_for(where, panels, [&](std::int64_t index) {
      expert_rows::item const item = all.at(index, 1, with.width);
      Element const* rows[most_panel_width];
      float weight[most_panel_width];
      rows_of(all.offsets[item.expert] + item.first_row, item.rows, rows, weight);
      with.pack(rows, item.rows, item.rows > with.lanes ? with.width : with.lanes, hidden,
                panels_of(item.expert, item.first_row));
    });
  }

  int const in_by_panels = panel_block_features(with, projections);
  parallel_for(where, count_items(intermediate, in_width, in_by_panels), [&](std::int64_t index) {
    expert_rows::item const item = all.at(index, block_rows, rows_in_panels);
    int const e = item.expert;
    Element const* rows[most_panel_rows] = {};
    float weight[most_panel_rows];
    if (WeighsInput || !all.by_panels(e)) rows_of(all.offsets[e] + item.first_row, item.rows, rows, weight);
    if (all.by_panels(e)) {
      panel_rows const tokens{panels_of(e, item.first_row), item.rows, with.lanes, with.width};
      for (int i = item.rows; WeighsInput && i < divide_up(item.rows, with.width) * with.width; ++i) weight[i] = 0.0f;
      project_panels_in<Expert>(where.instructions, with, tokens, WeighsInput ? weight : nullptr, in, e,
                                item.feature_block * in_by_panels, hidden, intermediate, inner_of(e, item.first_row));
    } else {
      int const first = item.feature_block * in_width;
      project_in<Expert>(where.instructions, rows, WeighsInput ? weight : nullptr, item.rows, in, e, first,
                         std::min(in_width, intermediate - first), hidden,
                         reinterpret_cast<Element*>(inner_of(e, 0)) + item.first_row * intermediate, intermediate);
    }
  });

  int const out_by_panels = panel_block_features(with, 1);
  parallel_for(where, count_items(hidden, block_columns, out_by_panels), [&](std::int64_t index) {
    expert_rows::item const item = all.at(index, block_rows, rows_in_panels);
    int const e = item.expert;
    float* const to = outer + (all.offsets[e] + item.first_row) * hidden;
    if (all.by_panels(e)) {
      panel_rows const rows{inner_of(e, item.first_row), item.rows, with.lanes, with.width};
      project_panels_out(with, rows, down, down_bias, e, item.feature_block * out_by_panels, hidden, intermediate, to);
    } else {
      int const first = item.feature_block * block_columns;
      project_out(where.instructions, reinterpret_cast<Element const*>(inner_of(e, 0)) + item.first_row * intermediate,
                  intermediate, item.rows, down, down_bias, e, first, std::min(block_columns, hidden - first),
                  intermediate, to, hidden);
    }
  });
}

/// Memory of the products of some experts with `rows` rows, and how those are found.
struct products_scratch {
  std::int64_t *first_place, *first_item;  ///< [experts + 1]
  float* inner;                            ///< [most_places(rows), panel_floats(intermediate)]
  float* outer;                            ///< [most_places(rows), panel_floats(hidden)]: the result is [rows, hidden]
};

/// From so many rows of an expert on, panels are faster than rows that meet the weights one by one. Measured at OLMoE's
/// shape with AVX-512, float and bfloat16: see bench/README.md.
inline constexpr int usual_panel_rows = 20;

inline expert_rows rows_in(cpu_context const& where, std::int32_t const* offsets, int experts,
                           products_scratch const& scratch) {
  int const least = where.least_panel_rows > 0 ? where.least_panel_rows : usual_panel_rows;
  return {offsets, scratch.first_place, scratch.first_item, experts, std::max(least, 16), lanes_of(where.instructions)};
}

/// Runs the routed experts over the plan's rows.
template <class Layer>
void run_experts(forward_args<Layer> const& args, cpu_context const& where, dispatch_plan const& plan,
                 float const* weights, products_scratch const& scratch) {
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
      where, panel_functions_of<element>(where.instructions),
      rows_in(where, plan.offsets, Layer::dims.experts, scratch), rows_of, in, args.weights.down_proj, down_bias,
      Layer::dims.hidden, Layer::dims.intermediate, scratch.inner, scratch.outer);
}

/// Runs the shared expert: one more expert that every token visits.
template <class Layer>
void run_shared_expert(forward_args<Layer> const& args, cpu_context const& where, products_scratch const& scratch) {
  using element = typename Layer::element;
  input_projection<element> in{};
  in.up = args.weights.shared.up_proj;
  if constexpr (Layer::expert_traits.gated) in.gate = args.weights.shared.gate_proj;
  std::int32_t const offsets[2] = {0, static_cast<std::int32_t>(args.tokens.rows)};
  auto const rows_of = [&](std::int64_t first, int count, element const** rows, float*) {
    for (int r = 0; r < count; ++r) rows[r] = args.tokens.row(first + r);
  };
  run_products<typename Layer::expert, false>(where, panel_functions_of<element>(where.instructions),
                                              rows_in(where, offsets, 1, scratch), rows_of, in,
                                              args.weights.shared.down_proj, bias_view<element>{}, Layer::dims.hidden,
                                              Layer::expert_traits.shared_intermediate, scratch.inner, scratch.outer);
}

}  // namespace switchyard::backend::detail
