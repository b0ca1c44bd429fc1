#pragma once

#include <switchyard/backend/cpu/product.hpp>
#include <switchyard/backend/cpu/tile.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/element.hpp>
#include <switchyard/core/operand.hpp>
#include <switchyard/core/view.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

/// Products of experts with many rows. The rows stand side by side in panels, so that a weight, straight from the
/// checkpoint, meets a vector of them; products come out the other way round, which is what the second product takes in.
namespace switchyard::cpu {

inline constexpr int most_panel_width = 32, most_panel_rows = 12 * most_panel_width, most_item_features = 64,
                     most_tiles = 6;

/// The kernels of products by panels, of one instruction set: a panel is `width` token rows side by side, a half one `lanes`.
template <class Operand>
struct panel_kernels {
  using element = typename Operand::element;
  int lanes, width;
  int features;                 ///< of a tile: a group that is multiplied together
  int depth;                    ///< that weights are made ready for at a time
  int item_panels, item_tiles;  ///< that are multiplied together, of one item
  bool fetches_items;           ///< meanwhile: the weights of the next item, else those of the next tile
  int values_per_float;         ///< of a panel
  bool in_order;                ///< element k of a panel's rows stands at k * width
  int usual_rows;               ///< of an expert, from which on panels are usually faster than groups of rows
  void (*begin)();              ///< before the products of an item
  void (*end)();
  /// Puts rows side by side; those past the last are zero.
  void (*pack)(element const* const* rows, int row_count, int width, std::int64_t depth, float* panel);
  /// Puts what the rows of a panel have for one element of their depth.
  void (*put)(float const* values, int width, std::int64_t k, std::int64_t depth, float* panel);
  /// Products of some features, each of which has `width` rows side by side, to rows of results, biases added.
  void (*put_rows)(float const* const* features, int feature_count, int row_count, float const* bias, float* to,
                   std::int64_t stride);
  /// Zeroes what is less than the `kept`-th largest value of each row; values are ranked times their factors [depth], unless that is null.
  void (*keep_largest)(float* panel, int width, std::int64_t depth, int kept, float const* factors);
  /// A piece of the weights of a tile, `depth` deep from `first` on.
  ready_weights (*prepare)(feature_tile<Operand> const& tile, std::int64_t first, int depth, float* memory);
  using product = void (*)(ready_weights const& weights, float const* panel, int depth, bool first, float* sums,
                           fetched_rows const& fetched);
  product multiply, multiply_half;  ///< of full panels, and of half ones
};

inline void nothing() {}

namespace amx {

struct tiles;
template <class Tiles, class Operand>
panel_kernels<Operand> panel_kernels_with();

}  // namespace amx

#define SWITCHYARD_PANEL_KERNELS(space)                            \
  panel_kernels<Operand> kernels{space::lanes,                     \
                                 space::panel_width,               \
                                 space::panel_features,            \
                                 panel_depth,                      \
                                 space::item_panels,               \
                                 space::item_tiles,                \
                                 false,                            \
                                 1,                                \
                                 true,                             \
                                 32,                               \
                                 &nothing,                         \
                                 &nothing,                         \
                                 nullptr,                          \
                                 nullptr,                          \
                                 &space::put_rows,                 \
                                 nullptr,                          \
                                 nullptr,                          \
                                 &space::multiply_panel<2>,        \
                                 &space::multiply_panel<1>};       \
  if constexpr (Operand::in_place) {                               \
    kernels.in_order = space::stored<element>::in_order;           \
    kernels.pack = &space::pack_panel<element>;                    \
    kernels.put = &space::put_values<element>;                     \
    kernels.keep_largest = &space::keep_largest_in_panel<element>; \
    kernels.prepare = &space::widen_rows<element>;                 \
  } else {                                                         \
    using order = typename space::restored<Operand>::order;        \
    kernels.in_order = space::stored<order>::in_order;             \
    kernels.pack = &space::pack_panel<element, order>;             \
    kernels.put = &space::put_values<order>;                       \
    kernels.keep_largest = &space::keep_largest_in_panel<order>;   \
    kernels.prepare = &space::restore_rows<Operand>;               \
  }                                                                \
  return kernels;
/// Whether AMX's tiles pay. Quantised weights are widened into two bfloat16 parts for them, which took 2.3 times as long as all of AVX-512's
/// panels do with 16 rows of an expert, and 1.3 to 1.6 times with 64.
template <class Operand>
inline constexpr bool suits_tiles = true;
template <class Element, class Format>
inline constexpr bool suits_tiles<quantised_matrix<Element, Format>> = false;

/// `set` must not be `automatic`.
template <class Operand>
panel_kernels<Operand> panel_kernels_of(instruction_set set, float_products floats) {
  using element = typename Operand::element;
#if defined(__x86_64__)
  if constexpr (std::is_same_v<element, bfloat16> || std::is_same_v<element, float>) {
    bool const by_tiles [[maybe_unused]] =
        std::is_same_v<element, bfloat16> || floats == float_products::three_of_bfloat16;
    if constexpr (suits_tiles<Operand>) {
      if (set == instruction_set::amx && by_tiles) return amx::panel_kernels_with<amx::tiles, Operand>();
    }
  }
  if (set >= instruction_set::avx512) {
    SWITCHYARD_PANEL_KERNELS(avx512)
  }
  if (set == instruction_set::avx2) {
    SWITCHYARD_PANEL_KERNELS(avx2)
  }
#else
  (void)set;
#endif
  (void)floats;
  SWITCHYARD_PANEL_KERNELS(portable)
}
#undef SWITCHYARD_PANEL_KERNELS

/// What happens between the two products: `activate` of tile.inl.
struct expert_activation {
  bool gated;
  void (*apply)(float const* gate, float const* up, float const* weights, float gate_bias, float up_bias, int width,
                float* to);
  int kept_units = 0;                 ///< of each row so many values, the largest, go into the second product; 0: all
  float const* unit_norms = nullptr;  ///< [experts, intermediate], factors by which they are ranked; null: none
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
  expert_activation result = activation_with<typename Expert::activation, Expert::traits.gated>(set);
  result.kept_units = Expert::traits.kept_units;
  return result;
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
template <class Operand>
float* sums_at(panel_kernels<Operand> const& kernels, float* sums, int tile, int panel) {
  return sums + (tile * kernels.item_panels + panel) * kernels.features * kernels.width;
}

/// Some rows of a matrix that stands in memory, from depth `first` on.
template <class T>
fetched_rows rows_of(weight_view<T> const& matrix, int expert, int row, int count, std::int64_t first) {
  constexpr int element_bytes = static_cast<int>(sizeof(T));
  if (matrix.column_stride != 1) return {};
  return {reinterpret_cast<char const*>(matrix.at(expert, row, first)), matrix.row_stride * element_bytes, count,
          element_bytes};
}

/// Part `part` of `parts` of a tile's rows, from depth `first` on, to be fetched from memory: none where there is nothing left, or nothing
/// of the weights stands in memory as it is read.
template <class Operand>
fetched_rows rows_to_fetch(feature_tile<Operand> const& tile, std::int64_t first, std::int64_t depth, int part,
                           int parts) {
  int const from = tile.features * part / parts, count = tile.features * (part + 1) / parts - from;
  if (first >= depth) return {};
  if constexpr (Operand::in_place) {
    weight_view<typename Operand::element> const rows{tile.rows, 0, tile.row_stride, tile.column_stride};
    return rows_of(rows, 0, from, count, first);
  } else if constexpr (shares_base<Operand>) {
    if constexpr (decltype(Operand::base)::in_place) {
      return rows_of(tile.weights->base, 0, tile.first + from, count, first);
    }
  }
  return {};
}

/// What is fetched from memory while the panels of an item are multiplied: the tiles that come after all of them, part by part.
template <class Operand>
struct tiles_ahead {
  feature_tile<Operand> const* tiles = nullptr;  ///< null: the next of the tiles that are multiplied
  int first_panel = 0, panels = 0;               ///< those that are multiplied, of all of the item
};

/// sums = products over the whole depth, in the first of `item_floats` floats. Weights are read once: others are fetched meanwhile.
template <class Operand>
void multiply_panels(panel_kernels<Operand> const& kernels, feature_tile<Operand> const* tiles,
                     panel_rows const& panels, std::int64_t depth, float* sums,
                     tiles_ahead<Operand> const& ahead = {}) {
  float* const memory = sums_at(kernels, sums, kernels.item_tiles, 0);
  int const panel_count = panels.count();
  kernels.begin();
  for (std::int64_t k = 0; k < depth; k += kernels.depth) {
    int const length = static_cast<int>(std::min<std::int64_t>(kernels.depth, depth - k));
    for (int t = 0; t < kernels.item_tiles; ++t) {
      feature_tile<Operand> const& tile = tiles[t];
      if (tile.features == 0) continue;
      ready_weights const weights = kernels.prepare(tile, k, length, memory);
      bool const last_tile = t + 1 == kernels.item_tiles || tiles[t + 1].features == 0;
      feature_tile<Operand> const& next = last_tile ? tiles[0] : tiles[t + 1];
      std::int64_t const next_k = last_tile ? k + kernels.depth : k;
      for (int p = 0; p < panel_count; ++p) {
        fetched_rows const fetched = ahead.tiles == nullptr
                                         ? rows_to_fetch(next, next_k, depth, p, panel_count)
                                         : rows_to_fetch(ahead.tiles[t], k, depth, ahead.first_panel + p, ahead.panels);
        int const width = panels.width_of(p);
        auto* const multiply = width == panels.width ? kernels.multiply : kernels.multiply_half;
        multiply(weights, panels.at(p, depth) + k * width / kernels.values_per_float, length, k == 0,
                 sums_at(kernels, sums, t, p), fetched);
      }
    }
  }
  kernels.end();
}

}  // namespace switchyard::cpu

#include <switchyard/backend/cpu/amx.hpp>
