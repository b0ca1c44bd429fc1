#pragma once

#include <switchyard/backend/cpu/product.hpp>
#include <switchyard/backend/cpu/tile.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/element.hpp>
#include <switchyard/core/view.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

/// Products of experts with many rows. The rows stand side by side in panels, so that a weight, straight from the
/// checkpoint, meets a vector of them; products come out the other way round, which is what the second product takes in.
namespace switchyard::backend::detail {

inline constexpr int most_panel_width = 32, most_panel_rows = 12 * most_panel_width, most_block_features = 64,
                     most_tiles = 6;

/// What of products by panels depends on the instruction set. `width` is two times `lanes`, the width of a half panel.
template <class Element>
struct panel_functions {
  int lanes, width;
  int features;                   ///< of a tile: a group that is multiplied together
  int depth;                      ///< that weights are made ready for at a time
  int block_panels, block_tiles;  ///< of one item
  int values_per_float;           ///< of a panel
  int usual_rows;                 ///< of an expert, from which on panels are usually faster than groups of rows
  void (*begin)();                ///< before the products of an item
  void (*end)();
  /// Puts rows side by side; those past the last are zero.
  void (*pack)(Element const* const* rows, int row_count, int width, std::int64_t depth, float* panel);
  /// Puts what the rows of a panel have for one element of their depth.
  void (*put)(float const* values, int width, std::int64_t k, std::int64_t depth, float* panel);
  ready_weights (*prepare)(Element const* from, std::int64_t row_stride, std::int64_t column_stride, int features,
                           int depth, float* memory);
  using product = void (*)(ready_weights const& weights, float const* panel, int depth, bool first, float* sums,
                           fetched_rows const& fetched);
  product multiply, multiply_half;  ///< of full panels, and of half ones
};

inline void nothing() {}

namespace amx {

struct tiles;
template <class Tiles, class Element>
panel_functions<Element> panel_functions_with();

}  // namespace amx

#define SWITCHYARD_PANEL_FUNCTIONS(space)                                                                              \
  {                                                                                                                    \
    space::lanes, space::panel_width, space::panel_features, panel_depth, space::block_panels, space::block_tiles, 1,  \
        32, &nothing, &nothing, &space::pack_panel<Element>, &space::put_values<Element>, &space::widen_rows<Element>, \
        &space::multiply_panel<2>, &space::multiply_panel<1>                                                           \
  }
template <class Element>
panel_functions<Element> panel_functions_of(instruction_set set, float_products floats) {
#if defined(__x86_64__)
  if constexpr (std::is_same_v<Element, bfloat16> || std::is_same_v<Element, float>) {
    bool const by_tiles = std::is_same_v<Element, bfloat16> || floats == float_products::three_of_bfloat16;
    if (set == instruction_set::amx && by_tiles) return amx::panel_functions_with<amx::tiles, Element>();
  }
  if (set >= instruction_set::avx512) return SWITCHYARD_PANEL_FUNCTIONS(avx512);
  if (set == instruction_set::avx2) return SWITCHYARD_PANEL_FUNCTIONS(avx2);
#else
  (void)set;
#endif
  (void)floats;
  return SWITCHYARD_PANEL_FUNCTIONS(portable);
}
#undef SWITCHYARD_PANEL_FUNCTIONS

/// What happens between the two products: `activate` of tile.inl.
struct expert_activation {
  bool gated;
  void (*apply)(float const* gate, float const* up, float const* weights, float gate_bias, float up_bias, int width,
                float* to);
};

template <class Activation, bool Gated>
expert_activation activation_with(instruction_set set) {
#if defined(__x86_64__)
  if (set >= instruction_set::avx512) return {Gated, &avx512::activate<Activation, Gated>};
  if (set == instruction_set::avx2) return {Gated, &avx2::activate<Activation, Gated>};
#else
  (void)set;
#endif
  return {Gated, &portable::activate<Activation, Gated>};
}
template <class Expert>
expert_activation activation_of(instruction_set set) {
  return activation_with<typename Expert::activation, Expert::traits.gated>(set);
}

/// The panels of some rows: full ones, and a last one that may be of half the width.
struct panel_rows {
  float const* first;
  int rows;
  int lanes, width;

  int count() const { return (rows + width - 1) / width; }
  int width_of(int panel) const { return rows - panel * width > lanes ? width : lanes; }
  int rows_of(int panel) const { return std::min(width, rows - panel * width); }
  float const* at(int panel, std::int64_t depth) const {
    return first + std::int64_t{panel} * width * row_floats(depth);
  }
};

/// Where the sums of one tile and one panel are: [features, panel's width].
template <class Element>
float* sums_at(panel_functions<Element> const& with, float* sums, int tile, int panel) {
  return sums + (tile * with.block_panels + panel) * with.features * with.width;
}

/// sums = products over the whole depth, in the first of `item_floats` floats. Weights are read once: those of the next tile are
/// fetched while this one is multiplied.
template <class Element>
void multiply_panels(panel_functions<Element> const& with, feature_tile<Element> const* tiles, panel_rows const& panels,
                     std::int64_t depth, float* sums) {
  float* const memory = sums_at(with, sums, with.block_tiles, 0);
  int const panel_count = panels.count();
  with.begin();
  for (std::int64_t k = 0; k < depth; k += with.depth) {
    int const length = static_cast<int>(std::min<std::int64_t>(with.depth, depth - k));
    for (int t = 0; t < with.block_tiles; ++t) {
      feature_tile<Element> const& tile = tiles[t];
      if (tile.features == 0) continue;
      ready_weights const weights = with.prepare(tile.rows + k * tile.column_stride, tile.row_stride,
                                                 tile.column_stride, tile.features, length, memory);
      bool const last_tile = t + 1 == with.block_tiles || tiles[t + 1].features == 0;
      feature_tile<Element> const& next = last_tile ? tiles[0] : tiles[t + 1];
      std::int64_t const next_k = last_tile ? k + with.depth : k;
      bool const fetches = next_k < depth && next.column_stride == 1;
      for (int p = 0; p < panel_count; ++p) {
        fetched_rows fetched;
        if (fetches) {  // this panel's share
          int const from = next.features * p / panel_count, to = next.features * (p + 1) / panel_count;
          fetched = {reinterpret_cast<char const*>(next.rows + from * next.row_stride + next_k),
                     next.row_stride * static_cast<std::int64_t>(sizeof(Element)), to - from, sizeof(Element)};
        }
        int const width = panels.width_of(p);
        auto* const multiply = width == panels.width ? with.multiply : with.multiply_half;
        multiply(weights, panels.at(p, depth) + k * width / with.values_per_float, length, k == 0,
                 sums_at(with, sums, t, p), fetched);
      }
    }
  }
  with.end();
}

}  // namespace switchyard::backend::detail

#include <switchyard/backend/cpu/amx.hpp>
