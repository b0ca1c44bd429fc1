#pragma once

#include <switchyard/backend/cpu/tile.hpp>
#include <switchyard/core/view.hpp>

#include <algorithm>
#include <cstdint>

/// Products of experts with many rows. The rows stand side by side in panels, so that a weight, straight from the
/// checkpoint, meets a vector of them; products come out the other way round, which is what the second product takes in.
namespace switchyard::backend::detail {

/// Panels and groups of features of one item: sums of an item take at most 108 KiB of stack.
inline constexpr int block_panels = 12, block_tiles = 6;
inline constexpr int most_panel_width = 32, most_panel_features = 12;
inline constexpr int most_tile_floats = most_panel_features * most_panel_width;

/// What of the panel functions depends on the instruction set. `width` is a multiple of `lanes`, two of them.
template <class Element>
struct panel_functions {
  int lanes, width, features;
  std::int64_t (*place)(std::int64_t k, std::int64_t depth);
  void (*pack)(Element const* const* rows, int row_count, int width, std::int64_t depth, float* panel);
  void (*widen)(Element const* from, std::int64_t row_stride, std::int64_t column_stride, int features, int depth,
                float* to);
  using product = void (*)(float const* weights, float const* panel, int depth, bool first, float* sums,
                           fetched_rows const& fetched);
  product multiply, multiply_half;  // full panels, and those of `lanes`
};

#define SWITCHYARD_PANEL_FUNCTIONS(space)                                                                              \
  {                                                                                                                    \
    space::lanes, space::panel_width, space::panel_features, &space::place_in_depth<Element>,                          \
        &space::pack_panel<Element>, &space::widen_rows<Element>, &space::multiply_panel<2>, &space::multiply_panel<1> \
  }
template <class Element>
panel_functions<Element> panel_functions_of(instruction_set set) {
#if defined(__x86_64__)
  if (set == instruction_set::avx512) return SWITCHYARD_PANEL_FUNCTIONS(avx512);
  if (set == instruction_set::avx2) return SWITCHYARD_PANEL_FUNCTIONS(avx2);
#else
  (void)set;
#endif
  return SWITCHYARD_PANEL_FUNCTIONS(portable);
}
#undef SWITCHYARD_PANEL_FUNCTIONS

inline int lanes_of(instruction_set set) { return panel_functions_of<float>(set).lanes; }

/// `activate` of tile.inl.
template <class Expert>
void activate(instruction_set set, float const* gate, float const* up, float const* weights, float gate_bias,
              float up_bias, int width, float* to) {
#if defined(__x86_64__)
  if (set == instruction_set::avx512) {
    return avx512::activate<Expert>(gate, up, weights, gate_bias, up_bias, width, to);
  }
  if (set == instruction_set::avx2) return avx2::activate<Expert>(gate, up, weights, gate_bias, up_bias, width, to);
#else
  (void)set;
#endif
  portable::activate<Expert>(gate, up, weights, gate_bias, up_bias, width, to);
}

/// The panels of some rows: full ones, and a last one that may be of half the width.
struct panel_rows {
  float const* first;  ///< [depth, width] each
  int rows;
  int lanes, width;

  int count() const { return (rows + width - 1) / width; }
  int width_of(int panel) const { return rows - panel * width > lanes ? width : lanes; }
  int rows_of(int panel) const { return std::min(width, rows - panel * width); }
  float const* at(int panel, std::int64_t depth) const { return first + std::int64_t{panel} * width * depth; }
};

/// The weights of up to `features` features, one of the tiles of an item.
template <class Element>
struct feature_tile {
  Element const* rows;  ///< the first feature's
  std::int64_t row_stride, column_stride;
  int features;  ///< 0: nothing to do
};

/// sums[tile][panel] = products over the whole depth, [features, panel's width] each, `most_tile_floats` apart. Weights are
/// read once: those of the next tile are fetched while this one is multiplied.
template <class Element>
void multiply_panels(panel_functions<Element> const& with, feature_tile<Element> const* tiles, int tile_count,
                     panel_rows const& panels, std::int64_t depth, float* sums) {
  alignas(64) float weights[most_panel_features * panel_pitch];
  int const panel_count = panels.count();
  for (std::int64_t k = 0; k < depth; k += panel_depth) {
    int const length = static_cast<int>(std::min<std::int64_t>(panel_depth, depth - k));
    for (int t = 0; t < tile_count; ++t) {
      feature_tile<Element> const& tile = tiles[t];
      if (tile.features == 0) continue;
      with.widen(tile.rows + k * tile.column_stride, tile.row_stride, tile.column_stride, tile.features, length,
                 weights);
      bool const last_tile = t + 1 == tile_count || tiles[t + 1].features == 0;
      feature_tile<Element> const& next = last_tile ? tiles[0] : tiles[t + 1];
      std::int64_t const next_k = last_tile ? k + panel_depth : k;
      bool const fetches = next_k < depth && next.column_stride == 1;
      for (int p = 0; p < panel_count; ++p) {
        fetched_rows fetched;
        if (fetches) {  // this panel's share
          int const from = next.features * p / panel_count, to = next.features * (p + 1) / panel_count;
          fetched = {reinterpret_cast<char const*>(next.rows + from * next.row_stride + next_k),
                     next.row_stride * static_cast<std::int64_t>(sizeof(Element)), to - from, sizeof(Element)};
        }
        auto* const multiply = panels.width_of(p) == panels.width ? with.multiply : with.multiply_half;
        float const* const panel = panels.at(p, depth) + k * panels.width_of(p);
        multiply(weights, panel, length, k == 0, sums + (t * block_panels + p) * most_tile_floats, fetched);
      }
    }
  }
}

}  // namespace switchyard::backend::detail
