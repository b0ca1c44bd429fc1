#pragma once

#include <switchyard/backend/cpu/change_apart.hpp>
#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/low_rank_terms.hpp>
#include <switchyard/backend/cpu/panels.hpp>
#include <switchyard/backend/cpu/product.hpp>
#include <switchyard/backend/cpu/units.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/operand.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

/// The two products of every expert over its rows. Work is cut into blocks of rows and
/// output features of one expert, so one busy expert keeps all workers busy; blocks that read the same weights
/// follow each other.
namespace switchyard::cpu {

/// Which rows some experts have, and which matrices those meet. Rows of one expert stand together.
struct row_ranges {
  std::int32_t const *begin, *end;  ///< [experts]; expert e has the rows begin[e] to end[e] - 1
  int experts;
  std::int32_t const* matrix_of = nullptr;  ///< [experts], the matrix of each among the weights; null: its own number
  std::int32_t const* number_of = nullptr;  ///< [experts], its number in the layer; null: the one here

  /// All experts of a plan.
  static row_ranges of(std::int32_t const* offsets, int experts) { return {offsets, offsets + 1, experts}; }
  int matrix(int e) const { return matrix_of == nullptr ? e : matrix_of[e]; }
  int number(int e) const { return number_of == nullptr ? e : number_of[e]; }
};

/// The rows of some experts, and how they are cut into items. An expert with at least `least_panel_rows` rows is computed by
/// panels (panels.hpp); its rows then are padded up to a multiple of `lanes`.
struct expert_rows {
  row_ranges ranges;
  std::int64_t* first_padded_row;  ///< [experts + 1], written by `set_padded_rows`
  std::int64_t* first_item;        ///< [experts + 1], written by `count`
  int least_panel_rows, lanes;

  int experts() const { return ranges.experts; }
  std::int64_t first_row(int e) const { return ranges.begin[e]; }
  std::int64_t rows(int e) const { return ranges.end[e] - ranges.begin[e]; }
  bool by_panels(int e) const { return rows(e) >= least_panel_rows; }

  void set_padded_rows() const {
    first_padded_row[0] = 0;
    for (int e = 0; e < experts(); ++e) {
      first_padded_row[e + 1] = first_padded_row[e] + (by_panels(e) ? divide_up(rows(e), lanes) * lanes : rows(e));
    }
  }

  /// Number of items over all experts, expert e having `items(e)`.
  template <class Items>
  std::int64_t count(Items const& items) const {
    first_item[0] = 0;
    for (int e = 0; e < experts(); ++e) first_item[e + 1] = first_item[e] + items(e);
    return first_item[experts()];
  }

  /// Rows of one expert, and the number of the block of features that they meet.
  struct item {
    int expert;
    std::int64_t first_row;  ///< among those of the expert
    int rows;
    int feature_item;
  };
  /// The item at an index below the last count, if items of an expert have so many rows at most. Items that read the same weights follow
  /// each other or, where panels meet as many blocks of features as are given, those of the same rows.
  item at(std::int64_t index, int rows_one_by_one, int rows_in_panels, int feature_blocks = 0) const {
    int low = 0, high = experts();  // the last expert whose items begin at or before the index
    while (high - low > 1) {
      int const middle = (low + high) / 2;
      (first_item[middle] <= index ? low : high) = middle;
    }
    bool const rows_stay = by_panels(low) && feature_blocks > 0;
    int const most = by_panels(low) ? rows_in_panels : rows_one_by_one;
    std::int64_t const number = index - first_item[low], blocks = divide_up(rows(low), most);
    std::int64_t const first = (rows_stay ? number / feature_blocks : number % blocks) * most;
    return {low, first, static_cast<int>(std::min<std::int64_t>(most, rows(low) - first)),
            static_cast<int>(rows_stay ? number % feature_blocks : number / blocks)};
  }
};

/// So many rows at most that all experts together have padded rows for, when there are `rows` rows.
constexpr std::int64_t most_padded_rows(std::int64_t rows, int experts) {
  constexpr std::int64_t lanes = least_rows_of_panels;  // as many as the widest instructions have lanes
  std::int64_t const with_panels = rows / lanes < experts ? rows / lanes : experts;
  return rows + with_panels * (lanes - 1);
}

/// The left factor of the first product: the tokens that some experts see.
template <class Element>
struct token_rows {
  view<Element const> tokens;
  std::int32_t const* pair_of = nullptr;  ///< [rows], the pair that each row serves; null: every token is a row
  int top_k = 1;
  float const* weights = nullptr;  ///< [pairs], for routers that weigh the input; null: nothing does

  std::int64_t token_of(std::int64_t row) const { return pair_of == nullptr ? row : pair_of[row] / top_k; }
  void locate(std::int64_t first, int count, Element const** rows) const {
    for (int r = 0; r < count; ++r) rows[r] = tokens.row(token_of(first + r));
  }
  void weights_of(std::int64_t first, int count, float* to) const {
    for (int r = 0; r < count; ++r) to[r] = weights[pair_of == nullptr ? first + r : pair_of[first + r]];
  }
};

/// What the first product reads: the weights of one kind of expert.
template <class Operand>
struct input_projection {
  Operand gate, up;
  bias_view<typename Operand::element> gate_bias, up_bias;  ///< null data: no bias
};

// The four functions that follow are not inlined: an item takes the stack of one of them, not the sum of two.

/// activated[row] = activations of the gate and up products (or of the up product) of some features, where `project_rows_out`
/// wants them. `next` is what is multiplied after it.
///
/// `row_weight` scales the products of a row where the router weighs the input: W (w x) = w (W x). `first_row` is the number of the first
/// one, which terms want to know.
template <class Operand, class Terms>
__attribute__((noinline)) void project_rows_in(expert_activation const& activation, row_kernels<Operand> const& kernels,
                                               grouped_rows const& rows, float const* row_weight,
                                               input_projection<Operand> const& weights, int expert, int first,
                                               int features, int hidden, int intermediate,
                                               feature_tile<Operand> const& next, float* activated, Terms const& terms,
                                               std::int64_t first_row) {
  float gate[item_rows * item_features], up[item_rows * item_features];
  feature_tile<Operand> const of_up = features_of(weights.up, expert, first, features);
  if (activation.gated) {
    multiply_rows(kernels, rows, features_of(weights.gate, expert, first, features), hidden, of_up, gate,
                  item_features);
    add_terms_to_rows(terms, &Terms::gate, first_row, rows.count, first, features, gate);
    weigh_and_shift(gate, rows.count, features, row_weight, weights.gate_bias, expert, first);
  }
  multiply_rows(kernels, rows, of_up, hidden, next, up, item_features);
  add_terms_to_rows(terms, &Terms::up, first_row, rows.count, first, features, up);
  weigh_and_shift(up, rows.count, features, row_weight, weights.up_bias, expert, first);
  for (int r = 0; r < rows.count; ++r) {
    float values[item_features];
    int const at = r * item_features;
    activation.apply(gate + at, up + at, nullptr, 0.0f, 0.0f, features, values);
    kernels.put(values, features, first, r, rows.count, intermediate, activated);
    if constexpr (Terms::any) std::copy(values, values + features, terms.inner_at(first_row + r, first));
  }
}

/// results[row][h] = down product of some features h (+ bias), in float.
template <class Operand, class Terms>
__attribute__((noinline)) void project_rows_out(row_kernels<Operand> const& kernels, grouped_rows const& activated,
                                                Operand const& down, bias_view<typename Operand::element> const& bias,
                                                int expert, int first, int features, int hidden, int intermediate,
                                                feature_tile<Operand> const& next, float* results, Terms const& terms,
                                                std::int64_t first_row) {
  float products[item_rows * item_features];
  multiply_rows(kernels, activated, features_of(down, expert, first, features), intermediate, next, products,
                item_features);
  add_terms_to_rows(terms, &Terms::down, first_row, activated.count, first, features, products);
  weigh_and_shift(products, activated.count, features, nullptr, bias, expert, first);
  for (int r = 0; r < activated.count; ++r) {
    float const* const from = products + r * item_features;
    std::copy(from, from + features, results + std::int64_t{r} * hidden + first);
  }
}

/// Features of one item that is computed by panels: of an output feature, or of a gate and an up feature each.
template <class Operand>
int panel_item_features(panel_kernels<Operand> const& kernels, int projections) {
  return kernels.item_tiles / projections * kernels.features;
}

/// The tiles of an item of the first product, from feature `first` on. Gate and up tiles take turns, so that those without features
/// come last.
template <class Operand>
void set_tiles_in(panel_kernels<Operand> const& kernels, bool gated, input_projection<Operand> const& weights,
                  int expert, int first, int intermediate, feature_tile<Operand>* tiles) {
  for (int t = 0; t < kernels.item_tiles; ++t) {
    int const feature = first + t / (gated ? 2 : 1) * kernels.features;
    tiles[t] = features_of(gated && t % 2 == 0 ? weights.gate : weights.up, expert, feature,
                           std::max(0, std::min(kernels.features, intermediate - feature)));
  }
}
/// The same of the second one.
template <class Operand>
void set_tiles_out(panel_kernels<Operand> const& kernels, Operand const& down, int expert, int first, int hidden,
                   feature_tile<Operand>* tiles) {
  for (int t = 0; t < kernels.item_tiles; ++t) {
    int const feature = first + t * kernels.features;
    tiles[t] = features_of(down, expert, feature, std::max(0, std::min(kernels.features, hidden - feature)));
  }
}

/// Gate and up products of some features and their activations, in the positions of a panel's depth: what `project_panels_out`
/// takes in. `row_weight` is null or has a factor for every place of a row.
template <class Operand, class Terms>
__attribute__((noinline)) void project_panels_in(expert_activation const& activation,
                                                 panel_kernels<Operand> const& kernels, panel_rows const& tokens,
                                                 float const* row_weight, input_projection<Operand> const& weights,
                                                 int expert, int first, int hidden, int intermediate,
                                                 tiles_ahead<Operand> const& ahead, float* activated,
                                                 Terms const& terms, std::int64_t first_row) {
  bool const gated = activation.gated;
  int const half = gated ? kernels.item_tiles / 2 : kernels.item_tiles, step = gated ? 2 : 1;
  alignas(64) float sums[item_floats];
  feature_tile<Operand> tiles[most_tiles] = {};
  set_tiles_in(kernels, gated, weights, expert, first, intermediate, tiles);
  multiply_panels(kernels, tiles, tokens, hidden, sums, ahead);
  if (gated) add_terms_to_panels(terms, &Terms::gate, kernels, tiles, 0, step, tokens, first_row, first, sums);
  add_terms_to_panels(terms, &Terms::up, kernels, tiles, step - 1, step, tokens, first_row, first, sums);

  // Products of a tile stand as the second product takes them in, unless there is something to add to each feature or row.
  bool const tile_by_tile =
      kernels.in_order && row_weight == nullptr && weights.up_bias.data == nullptr && weights.gate_bias.data == nullptr;
  for (int t = 0; t < half; ++t) {
    int const features = tiles[step * t].features;
    for (int p = 0; tile_by_tile && p < tokens.count(); ++p) {
      int const width = tokens.width_of(p);
      std::int64_t const to = p * tokens.width * row_floats(intermediate) + (first + t * kernels.features) * width;
      activation.apply(sums_at(kernels, sums, step * t, p), sums_at(kernels, sums, step * t + step - 1, p), nullptr,
                       0.0f, 0.0f, features * width, activated + to);
    }
    if (tile_by_tile) continue;
    for (int f = 0; f < features; ++f) {
      int const feature = first + t * kernels.features + f;
      float const up_bias = weights.up_bias.at(expert, feature);
      float const gate_bias = weights.gate_bias.at(expert, feature);
      for (int p = 0; p < tokens.count(); ++p) {
        int const width = tokens.width_of(p);
        float* const up = sums_at(kernels, sums, step * t + step - 1, p) + f * width;
        float const* const gate = sums_at(kernels, sums, step * t, p) + f * width;
        float values[most_panel_width];
        activation.apply(gate, up, row_weight == nullptr ? nullptr : row_weight + p * tokens.width, gate_bias, up_bias,
                         width, values);
        kernels.put(values, width, feature, intermediate,
                    activated + std::int64_t{p} * tokens.width * row_floats(intermediate));
        if constexpr (Terms::any) std::copy(values, values + width, up);
      }
    }
  }
  if constexpr (Terms::any) {
    float const zeros[most_item_features] = {};
    for (int p = 0; p < tokens.count(); ++p) {
      int const width = tokens.width_of(p);
      float const* values[most_item_features];
      int count = 0;
      for (int t = 0; t < half; ++t) {
        float const* const in_place = activated + p * tokens.width * row_floats(intermediate) + first * width;
        for (int f = 0; f < tiles[step * t].features; ++f, ++count) {
          values[count] =
              tile_by_tile ? in_place + count * width : sums_at(kernels, sums, step * t + step - 1, p) + f * width;
        }
      }
      kernels.put_rows(values, count, tokens.rows_of(p), zeros, terms.inner_at(first_row + p * tokens.width, first),
                       terms.inner_stride);
    }
  }
}

/// results[row][h] = down product of some features h (+ bias), in float.
template <class Operand, class Terms>
__attribute__((noinline)) void project_panels_out(panel_kernels<Operand> const& kernels, panel_rows const& activated,
                                                  Operand const& down, bias_view<typename Operand::element> const& bias,
                                                  int expert, int first, int hidden, int intermediate,
                                                  tiles_ahead<Operand> const& ahead, float* results, Terms const& terms,
                                                  std::int64_t first_row) {
  alignas(64) float sums[item_floats];
  feature_tile<Operand> tiles[most_tiles] = {};
  set_tiles_out(kernels, down, expert, first, hidden, tiles);
  multiply_panels(kernels, tiles, activated, intermediate, sums, ahead);
  add_terms_to_panels(terms, &Terms::down, kernels, tiles, 0, 1, activated, first_row, first, sums);
  int const features = std::min(kernels.item_tiles * kernels.features, hidden - first);
  float biases[most_item_features] = {};
  for (int f = 0; f < features; ++f) biases[f] = bias.at(expert, first + f);
  for (int p = 0; p < activated.count(); ++p) {
    int const width = activated.width_of(p);
    float const* products[most_item_features];
    for (int f = 0; f < features; ++f) {
      products[f] = sums_at(kernels, sums, f / kernels.features, p) + f % kernels.features * width;
    }
    kernels.put_rows(products, features, activated.rows_of(p), biases,
                     results + std::int64_t{p} * activated.width * hidden + first, hidden);
  }
}

/// What both products read besides rows: the weights of some experts, [intermediate, hidden] and back.
template <class Operand>
struct expert_weights {
  input_projection<Operand> in;
  Operand down;
  bias_view<typename Operand::element> down_bias;  ///< null data: no bias
  int hidden, intermediate;
  unit_kernels<typename Operand::element> units = {};  ///< of experts that keep some units only
};

/// Both products over all rows, and their terms. `activated` has room for `most_padded_rows` rows of `row_floats(intermediate)` floats, `packed` for
/// as many of `row_floats(hidden)`, the tokens as the first product wants them. `results` may stand in the place of `packed` where all experts are
/// computed at once.
template <class Operand, class Terms = no_terms>
void run_products(cpu_context const& context, row_kernels<Operand> const& few, panel_kernels<Operand> const& kernels,
                  expert_rows const& all, token_rows<typename Operand::element> const& tokens,
                  expert_activation const& activation, expert_weights<Operand> const& weights, float* activated,
                  float* packed, float* results, Terms const& terms = {}) {
  input_projection<Operand> const& in = weights.in;
  Operand const& down = weights.down;
  bias_view<typename Operand::element> const& down_bias = weights.down_bias;
  int const hidden = weights.hidden, intermediate = weights.intermediate;
  // Items of panels that meet the same weights follow each other on one worker, in turns of `rows_in_turn` rows.
  int const rows_in_turn = kernels.item_panels * kernels.width,
            most_rows_in_turns = most_panel_rows / rows_in_turn * rows_in_turn;
  auto const activated_of = [&](expert_rows::item const& i) {
    return activated + (all.first_padded_row[i.expert] + i.first_row) * row_floats(intermediate);
  };
  auto const tokens_of = [&](expert_rows::item const& i) {
    return packed + (all.first_padded_row[i.expert] + i.first_row) * row_floats(hidden);
  };
  std::int64_t row_items = 0;  // without panels
  for (int e = 0; e < all.experts(); ++e) row_items += all.by_panels(e) ? 0 : divide_up(all.rows(e), item_rows);

  // Experts whose second product skips units that are zero.
  bool units_lie_together = false;
  if constexpr (Operand::in_place) units_lie_together = weights.units.add != nullptr && down.row_stride == 1;
  auto const by_units = [&](int e) {
    if constexpr (Operand::in_place) {
      return units_lie_together &&
             (!all.by_panels(e) || (kernels.values_per_float == 1 && activation.kept_units * 8 <= intermediate));
    } else {
      return false;
    }
  };

  // How a product of so many features is cut into items.
  struct cut {
    int features, by_rows, by_panels;
    bool is_second;
    /// How many blocks of features rows meet one after the other. Where an expert's weights fit the second-level cache, its rows are read
    /// once; else, and so is it with 0, blocks meet all rows one after the other, and the weights are read once.
    int blocks_in_turn(std::int64_t depth) const {
      constexpr std::int64_t cached_bytes = 1 << 20;
      bool const fit = depth * features * static_cast<std::int64_t>(sizeof(typename Operand::element)) <= cached_bytes;
      return fit ? static_cast<int>(divide_up(features, by_panels)) : 0;
    }
  };
  auto const block_of = [&](cut const& c, int e) {
    if (c.is_second && by_units(e)) return unit_features;
    return all.by_panels(e) ? c.by_panels : c.by_rows;
  };
  // Calls `product(item, next_item, next)` for every item. The next one is what the same thread probably does after it, the same one at
  // the end; `next(matrix)` is what that reads of a matrix, as far as it is multiplied row by row; none behind the last item.
  auto const for_each_item = [&](cut const& c, int blocks_in_turn, auto const& product) {
    int const rows_in_panels = blocks_in_turn > 0 ? rows_in_turn : most_rows_in_turns;
    auto const count = [&](auto const& is_counted) {
      return all.count([&](int e) {
        return !is_counted(e) ? 0
                              : divide_up(all.rows(e), all.by_panels(e) ? rows_in_panels : item_rows) *
                                    divide_up(c.features, block_of(c, e));
      });
    };
    auto const run = [&](std::int64_t items, auto const& item_at) {
      parallel_for(context, items, [&](std::int64_t index, std::int64_t next_index) {
        expert_rows::item const item = item_at(index);
        bool const is_last = next_index >= items;
        expert_rows::item const next = is_last ? item : item_at(next_index);
        product(item, next, [&](Operand const& matrix) {
          if (is_last || (c.is_second && by_units(next.expert))) return feature_tile<Operand>{};
          int const first = next.feature_item * block_of(c, next.expert);
          return features_of(matrix, all.ranges.matrix(next.expert), first, std::min(c.by_rows, c.features - first));
        });
      });
    };
    auto const by_experts = [&](std::int64_t index) {
      return all.at(index, item_rows, rows_in_panels, blocks_in_turn);
    };
    if constexpr (shares_base<Operand>) {
      run(count([&](int e) { return all.by_panels(e); }), by_experts);
      // What all experts read comes from memory once: a block of features meets the rows of all of them before the next one does.
      std::int64_t const items = count([&](int e) { return !all.by_panels(e); });
      std::int64_t const blocks = divide_up(c.features, c.by_rows), groups = items / blocks;
      run(items, [&](std::int64_t index) {
        expert_rows::item item = all.at(index % groups * blocks, item_rows, rows_in_panels);
        std::int64_t const before = all.first_item[item.expert] / blocks;
        item.first_row = (index % groups - before) * item_rows;
        item.rows = static_cast<int>(std::min<std::int64_t>(item_rows, all.rows(item.expert) - item.first_row));
        item.feature_item = static_cast<int>(index / groups);
        return item;
      });
    } else {
      run(count([](int) { return true; }), by_experts);
    }
  };

  all.set_padded_rows();
  auto const count_packed = [&] {  // a panel, or a group's rows
    return all.count([&](int e) { return divide_up(all.rows(e), all.by_panels(e) ? kernels.width : item_rows); });
  };
  std::int64_t const packing_items = count_packed();
  parallel_for(context, packing_items, [&](std::int64_t index) {
    expert_rows::item const item = all.at(index, item_rows, kernels.width);
    typename Operand::element const* rows[std::max(item_rows, most_panel_width)];
    tokens.locate(all.first_row(item.expert) + item.first_row, item.rows, rows);
    if (all.by_panels(item.expert)) {
      int const width = item.rows > kernels.lanes ? kernels.width : kernels.lanes;
      kernels.pack(rows, item.rows, width, hidden, tokens_of(item));
    } else {
      few.group(rows, item.rows, hidden, tokens_of(item));
    }
  });

  // Calls `product(panels, first row, ahead)` for an item's panels, some at a time. Where the weights of two items fit the second-level
  // cache, those of the next one are fetched meanwhile.
  auto const in_turns = [&](expert_rows::item const& item, expert_rows::item const& next, float const* from,
                            std::int64_t depth, auto const& set_tiles, auto const& product) {
    constexpr std::int64_t cached_bytes = 1 << 19;
    std::int64_t const bytes =
        kernels.item_tiles * kernels.features * depth * static_cast<std::int64_t>(sizeof(typename Operand::element));
    bool const other = item.expert != next.expert || item.feature_item != next.feature_item;
    feature_tile<Operand> tiles[most_tiles] = {};
    tiles_ahead<Operand> ahead;
    if (kernels.fetches_items && other && bytes <= cached_bytes && all.by_panels(next.expert)) {
      set_tiles(next, tiles);
      ahead = {tiles, 0, static_cast<int>(divide_up(item.rows, kernels.width))};
    }
    for (int first = 0; first < item.rows; first += rows_in_turn, ahead.first_panel += kernels.item_panels) {
      product(panel_rows{from + first * row_floats(depth), std::min(rows_in_turn, item.rows - first), kernels.lanes,
                         kernels.width},
              first, ahead);
    }
  };

  terms.before_in(context, tokens, hidden, activation.gated);
  cut const in_cut{
      intermediate,
      features_of_item<typename Operand::element>(hidden, intermediate, row_items, context.threads, few.least_values),
      panel_item_features(kernels, activation.gated ? 2 : 1), false};
  for_each_item(in_cut, in_cut.blocks_in_turn(hidden),
                [&](expert_rows::item const& item, expert_rows::item const& next_item, auto const& next) {
                  int const e = item.expert;
                  float weight[most_panel_rows];
                  if (tokens.weights != nullptr) {
                    tokens.weights_of(all.first_row(e) + item.first_row, item.rows, weight);
                    for (int i = item.rows; i < divide_up(item.rows, kernels.width) * kernels.width; ++i)
                      weight[i] = 0.0f;
                  }
                  float const* const row_weight = tokens.weights != nullptr ? weight : nullptr;
                  if (all.by_panels(e)) {
                    auto const set_tiles = [&](expert_rows::item const& of, feature_tile<Operand>* tiles) {
                      set_tiles_in(kernels, activation.gated, in, all.ranges.matrix(of.expert),
                                   of.feature_item * in_cut.by_panels, intermediate, tiles);
                    };
                    in_turns(item, next_item, tokens_of(item), hidden, set_tiles,
                             [&](panel_rows const& panels, int first, tiles_ahead<Operand> const& ahead) {
                               project_panels_in(
                                   activation, kernels, panels, row_weight == nullptr ? nullptr : row_weight + first,
                                   in, all.ranges.matrix(e), item.feature_item * in_cut.by_panels, hidden, intermediate,
                                   ahead, activated_of(item) + first * row_floats(intermediate), terms,
                                   all.first_row(e) + item.first_row + first);
                             });
                  } else {
                    int const first = item.feature_item * in_cut.by_rows;
                    project_rows_in(activation, few, {tokens_of(item), item.rows}, row_weight, in, all.ranges.matrix(e),
                                    first, std::min(in_cut.by_rows, intermediate - first), hidden, intermediate,
                                    next(activation.gated ? in.gate : in.up), activated_of(item), terms,
                                    all.first_row(e) + item.first_row);
                  }
                });

  if (activation.kept_units > 0) {
    std::int64_t const packed_items = count_packed();
    parallel_for(context, packed_items, [&](std::int64_t index) {
      expert_rows::item const item = all.at(index, item_rows, kernels.width);
      float const* norms = activation.unit_norms;
      if (norms != nullptr) norms += std::int64_t{all.ranges.number(item.expert)} * intermediate;
      if (all.by_panels(item.expert)) {
        int const width = item.rows > kernels.lanes ? kernels.width : kernels.lanes;
        kernels.keep_largest(activated_of(item), width, intermediate, activation.kept_units, norms);
      } else {
        few.keep_largest(activated_of(item), item.rows, intermediate, activation.kept_units, norms);
      }
    });
  }

  terms.before_out(context, intermediate);
  cut const out_cut{
      hidden,
      features_of_item<typename Operand::element>(intermediate, hidden, row_items, context.threads, few.least_values),
      panel_item_features(kernels, 1), true};
  int const out_blocks = units_lie_together ? 0 : out_cut.blocks_in_turn(intermediate);
  for_each_item(
      out_cut, out_blocks, [&](expert_rows::item const& item, expert_rows::item const& next_item, auto const& next) {
        int const e = item.expert;
        float* const to = results + (all.first_row(e) + item.first_row) * hidden;
        if (by_units(e)) {
          if constexpr (Operand::in_place) {
            int const first = item.feature_item * unit_features;
            panel_rows const panels{activated_of(item), item.rows, kernels.lanes, kernels.width};
            auto const row = [&](int r) -> row_among_others {
              if (!all.by_panels(e)) return {panels.first, r, item.rows, intermediate, false};
              int const panel = r / panels.width;
              return {panels.at(panel, intermediate), r % panels.width, panels.width_of(panel), intermediate, true};
            };
            sum_units_out(weights.units, item.rows, row, down, down_bias, all.ranges.matrix(e), first,
                          std::min(unit_features, hidden - first), hidden, to);
          }
        } else if (all.by_panels(e)) {
          auto const set_tiles = [&](expert_rows::item const& of, feature_tile<Operand>* tiles) {
            set_tiles_out(kernels, down, all.ranges.matrix(of.expert), of.feature_item * out_cut.by_panels, hidden,
                          tiles);
          };
          in_turns(item, next_item, activated_of(item), intermediate, set_tiles,
                   [&](panel_rows const& panels, int first, tiles_ahead<Operand> const& ahead) {
                     project_panels_out(kernels, panels, down, down_bias, all.ranges.matrix(e),
                                        item.feature_item * out_cut.by_panels, hidden, intermediate, ahead,
                                        to + std::int64_t{first} * hidden, terms,
                                        all.first_row(e) + item.first_row + first);
                   });
        } else {
          int const first = item.feature_item * out_cut.by_rows;
          project_rows_out(few, {activated_of(item), item.rows}, down, down_bias, all.ranges.matrix(e), first,
                           std::min(out_cut.by_rows, hidden - first), hidden, intermediate, next(down), to, terms,
                           all.first_row(e) + item.first_row);
        }
      });
}

/// Memory of the products of some experts with `rows` rows, and how those are found.
struct products_memory {
  std::int64_t *first_padded_row, *first_item;  ///< [experts + 1]
  float* activated;                             ///< [most_padded_rows(rows), row_floats(intermediate)]
  float* packed;                                ///< [most_padded_rows(rows), row_floats(hidden)]
  float* results;                               ///< [rows, hidden]; `packed` where all experts are computed at once
  apart_memory apart = {};                      ///< of few tokens, where weights have a sparse change
};

/// Both products of some experts over their rows: `ranges` says which rows of `tokens` each has. `Operand` alone decides
/// what is compiled, and the type of `terms`, so that layers of any shape and policies share it.
template <class Operand, class Terms = no_terms>
void run_products(cpu_context const& context, row_ranges const& ranges,
                  token_rows<typename Operand::element> const& tokens, expert_activation const& activation,
                  expert_weights<Operand> const& weights, products_memory const& memory, Terms const& terms = {}) {
  bool const by_integers = operand_codes<Operand>::exist && context.quantised == quantised_products::tokens_in_int8;
  row_kernels<Operand> const few = [&] {
    if constexpr (operand_codes<Operand>::exist) {
      if (by_integers) return integer_row_kernels_of<Operand>(context.instructions);
    }
    return row_kernels_of<Operand>(context.instructions);
  }();
  panel_kernels<Operand> const kernels = panel_kernels_of<Operand>(context.instructions, context.floats);
  int const usual = context.least_panel_rows > 0 ? context.least_panel_rows : kernels.usual_rows,
            least = by_integers ? std::numeric_limits<int>::max() : usual;
  if constexpr (has_sparse_change<Operand> && !Terms::any) {
    apart_products<Operand, token_rows<typename Operand::element>, expert_weights<Operand>> const apart(
        context, ranges.begin, ranges.experts, tokens, activation, weights, memory.apart);
    if (apart.fit(least)) return apart.run(memory.activated, memory.results);
  }
  expert_rows const rows{ranges, memory.first_padded_row, memory.first_item, least, kernels.lanes};
  run_products(context, few, kernels, rows, tokens, activation, weights, memory.activated, memory.packed,
               memory.results, terms);
}

}  // namespace switchyard::cpu
