#pragma once

#include <switchyard/backend/cpu/tile.hpp>
#include <switchyard/core/element.hpp>
#include <switchyard/core/operand.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

/// Products of few rows, at the speed at which weights come from memory.
namespace switchyard::cpu {

/// The kernels of products of few rows, of one instruction set: see tile.inl.
template <class Operand>
struct row_kernels {
  using element = typename row_element<typename Operand::element>::type;
  void (*group)(element const* const* rows, int row_count, std::int64_t depth, float* to);
  void (*put)(float const* values, int count, std::int64_t first, int row, int row_count, std::int64_t depth,
              float* to);
  /// Zeroes what is less than the `kept`-th largest value of each row; values are ranked times their factors [depth], unless that is null.
  void (*keep_largest)(float* rows, int row_count, std::int64_t depth, int kept, float const* factors);
  void (*multiply)(float const* rows, int row_count, depth_slice const& piece, feature_tile<Operand> const& weights,
                   feature_tile<Operand> const& next, float* to, std::int64_t stride);
  /// to[r][f] += row r . what the change of an operand with a base has for feature f, for a depth that is a multiple of 32. Null where
  /// weights are restored as fast.
  void (*add_change)(float const* rows, int row_count, std::int64_t depth, feature_tile<Operand> const& weights,
                     float* to, std::int64_t stride) = nullptr;
  int least_values = 8;  ///< `put` takes a multiple of so many of a row, but for the last ones
};

#define SWITCHYARD_ROW_KERNELS(space)                                                                               \
  if constexpr (Operand::in_place) {                                                                                \
    return {&space::group_rows<element>, &space::put_in_group<element>, &space::keep_largest_in_group<element>,     \
            &space::multiply_rows_by_features<typename Operand::element>};                                          \
  } else {                                                                                                          \
    using order = typename space::restored<Operand>::order;                                                         \
    row_kernels<Operand> kernels{&space::group_rows_in_order<element, order>, &space::put_in_group<order>,          \
                                 &space::keep_largest_in_group<order>, &space::multiply_rows_by_restored<Operand>}; \
    if constexpr (std::is_same_v<order, element>) kernels.group = &space::group_rows<element>;                      \
    if constexpr (space::restored<Operand>::multiplies_changes)                                                     \
      kernels.add_change = &space::restored<Operand>::add_change;                                                   \
    if constexpr (requires { space::restored<Operand>::take_dealt(kernels); })                                      \
      space::restored<Operand>::take_dealt(kernels);                                                                \
    return kernels;                                                                                                 \
  }
/// `set` must not be `automatic`.
template <class Operand>
row_kernels<Operand> row_kernels_of(instruction_set set) {
  using element = typename row_kernels<Operand>::element;
#if defined(__x86_64__)
  if (set >= instruction_set::avx512) {
    SWITCHYARD_ROW_KERNELS(avx512)
  }
  if (set == instruction_set::avx2) {
    SWITCHYARD_ROW_KERNELS(avx2)
  }
#else
  (void)set;
#endif
  SWITCHYARD_ROW_KERNELS(portable)
}
#undef SWITCHYARD_ROW_KERNELS

/// The kernels of integer products, for any number of rows. `set` must not be `automatic`.
template <class Operand>
row_kernels<Operand> integer_row_kernels_of(instruction_set set) {
  using element = typename row_kernels<Operand>::element;
  constexpr code_order order = operand_codes<Operand>::order;
#define SWITCHYARD_INTEGER_KERNELS(space, Multiplier)                    \
  return {&space::group_chunks<element, order>,                          \
          &space::put_in_chunks<order>,                                  \
          nullptr,                                                       \
          &space::multiply_rows_by_integers<Operand, space::Multiplier>, \
          nullptr,                                                       \
          chunk_depth};
#if defined(__x86_64__) && !defined(SWITCHYARD_EMULATED_TILES)
  if (set >= instruction_set::avx512 && multiplies_bytes(set)) {
    SWITCHYARD_INTEGER_KERNELS(avx512, by_dots)
  }
  if (set >= instruction_set::avx2 && multiplies_bytes(instruction_set::avx2)) {
    SWITCHYARD_INTEGER_KERNELS(avx2, by_dots)
  }
  if (set >= instruction_set::avx2) {
    SWITCHYARD_INTEGER_KERNELS(avx2, by_pairs)
  }
#else
  (void)set;
#endif
  SWITCHYARD_INTEGER_KERNELS(portable, by_pairs)
#undef SWITCHYARD_INTEGER_KERNELS
}

/// The kernels of terms of low rank, of one instruction set: see tile.inl.
template <class Element>
struct term_kernels {
  int lanes;
  int rows;  ///< that `add` takes together at most
  void (*add)(Element const* tall, int rank, int features, float const* const* narrow, int rows, float* const* to,
              std::int64_t feature_step);
  void (*add_to_panel)(Element const* tall, int rank, int features, float const* narrow, std::int64_t stride,
                       std::uint32_t rows, float* sums, int width);
};

/// `set` must not be `automatic`.
template <class Element>
term_kernels<Element> term_kernels_of(instruction_set set) {
#if defined(__x86_64__)
  if (set >= instruction_set::avx512) {
    return {avx512::lanes, avx512::term_rows, &avx512::add_low_rank_terms<Element>,
            &avx512::add_low_rank_terms_to_panel<Element>};
  }
  if (set == instruction_set::avx2) {
    return {avx2::lanes, avx2::term_rows, &avx2::add_low_rank_terms<Element>,
            &avx2::add_low_rank_terms_to_panel<Element>};
  }
#else
  (void)set;
#endif
  return {portable::lanes, portable::term_rows, &portable::add_low_rank_terms<Element>,
          &portable::add_low_rank_terms_to_panel<Element>};
}

/// The rows of a product, in groups.
struct grouped_rows {
  float const* first;
  int count;
};

/// to[r][f] = rows[r] . weights[f]. `next` is what the caller multiplies after it.
template <class Operand>
void multiply_rows(row_kernels<Operand> const& kernels, grouped_rows const& rows, feature_tile<Operand> const& weights,
                   std::int64_t depth, feature_tile<Operand> const& next, float* to, std::int64_t stride) {
  depth_slice const whole{depth, 0, depth};
  if constexpr (!Operand::in_place) {
    kernels.multiply(rows.first, rows.count, whole, weights, next, to, stride);
  } else {
    if (weights.column_stride == 1) {
      return kernels.multiply(rows.first, rows.count, whole, weights,
                              next.column_stride == 1 ? next : feature_tile<Operand>{}, to, stride);
    }
    // Weights whose input features are not contiguous are packed, some at a time.
    using element = typename Operand::element;
    constexpr int packed_depth = 64;
    element packed[item_features * packed_depth];
    float part[item_rows * item_features];
    for (std::int64_t k = 0; k < depth; k += packed_depth) {
      depth_slice const piece{depth, k, std::min<std::int64_t>(packed_depth, depth - k)};
      for (std::int64_t i = 0; i < piece.length; ++i) {
        element const* const from = weights.rows + (k + i) * weights.column_stride;
        for (int f = 0; f < weights.features; f += 64 / static_cast<int>(sizeof(element))) {
          __builtin_prefetch(from + 32 * weights.column_stride + f * weights.row_stride);
        }
        for (int f = 0; f < weights.features; ++f) packed[f * packed_depth + i] = from[f * weights.row_stride];
      }
      kernels.multiply(rows.first, rows.count, piece, {packed, packed_depth, 1, weights.features}, {}, part,
                       item_features);
      for (int r = 0; r < rows.count; ++r) {
        for (int f = 0; f < weights.features; ++f) {
          float const value = part[r * item_features + f];
          to[r * stride + f] = k == 0 ? value : to[r * stride + f] + value;
        }
      }
    }
  }
}

/// values[r][i] = row_weight[r] * values[r][i] + the bias of feature first + i.
template <class Element>
void weigh_and_shift(float* values, int rows, int features, float const* row_weight, bias_view<Element> const& bias,
                     int expert, std::int64_t first) {
  float biases[item_features];
  for (int i = 0; i < features; ++i) biases[i] = bias.at(expert, first + i);
  for (int r = 0; r < rows; ++r) {
    float const weight = row_weight == nullptr ? 1.0f : row_weight[r];
    for (int i = 0; i < features; ++i) {
      values[r * item_features + i] = weight * values[r * item_features + i] + biases[i];
    }
  }
}

inline constexpr int block_rows = 6, block_features = 32;

/// The kernels of floats, for elements whose products have the bits of theirs; nothing for others.
template <class Element>
struct kernels_of_floats {
  kernels_of_floats() = default;
  explicit kernels_of_floats(instruction_set) {}
};
template <class Element>
struct kernels_of_floats<summed_as_float<Element>> {
  row_kernels<weight_view<float>> kernels;
  explicit kernels_of_floats(instruction_set set) : kernels(row_kernels_of<weight_view<float>>(set)) {}

  /// Products of grouped rows and a piece of some features, by the code of floats.
  void multiply(float const* grouped, int rows, int length, feature_tile<weight_view<summed_as_float<Element>>> weights,
                float* to) const {
    constexpr int together = 4;
    alignas(64) float widened[together * panel_pitch];
    for (int begin = 0; begin < weights.features; begin += together) {
      int const count = std::min(together, weights.features - begin);
      for (int f = 0; f < count; ++f) {
        auto const* const from = weights.rows + (begin + f) * weights.row_stride;
        for (int i = 0; i < length; ++i) widened[f * panel_pitch + i] = static_cast<float>(from[i]);
      }
      kernels.multiply(grouped, rows, {length, 0, length}, {widened, panel_pitch, 1, count}, {}, to + begin,
                       block_features);
    }
  }
};

/// to[r][f] = row r . weights[f] for a block of a product, rows given as floats: `load(r, k, length, to)` says where `length` of row r's
/// elements stand, from element k on, and may put them at `to`. Sums are taken piece by piece, so that no row or feature depends on what
/// stands beside it.
template <class Element, class Load>
void multiply_block(row_kernels<weight_view<Element>> const& kernels, int rows, int depth,
                    feature_tile<weight_view<Element>> weights, Load const& load, float* to, std::int64_t stride,
                    kernels_of_floats<Element> const& of_floats = {}) {
  constexpr int most = panel_depth;
  float loaded[block_rows * most], part[block_rows * block_features];
  alignas(64) float grouped[block_rows * row_floats(most)];
  for (int k = 0; k < depth; k += most) {
    int const length = std::min(most, depth - k);
    float const* piece[block_rows] = {};
    for (int r = 0; r < rows; ++r) {
      piece[r] = load(r, k, length, loaded + r * most);
    }
    if constexpr (std::is_same_v<typename row_element<Element>::type, float>) {
      kernels.group(piece, rows, length, grouped);
    } else {
      for (int r = 0; r < rows; ++r) kernels.put(piece[r], length, 0, r, rows, length, grouped);
    }
    bool multiplied = false;
    if constexpr (!std::is_same_v<typename row_element<Element>::type, Element>) {
      // What no vector is filled with is added up one by one, which compilers contract differently in other loops.
      multiplied = length % 16 != 0;
      if (multiplied) of_floats.multiply(grouped, rows, length, weights, part);
    }
    if (!multiplied) kernels.multiply(grouped, rows, {length, 0, length}, weights, {}, part, block_features);
    for (int r = 0; r < rows; ++r) {
      for (int f = 0; f < weights.features; ++f) {
        float const value = part[r * block_features + f];
        to[r * stride + f] = k == 0 ? value : to[r * stride + f] + value;
      }
    }
    weights.rows += length;
  }
}

/// Features of an item of a product of `features` features, `depth` elements deep, that `items` experts and blocks of rows
/// have, `least` or more: long streams of memory are read faster, but all workers want something to do. No result depends on it.
template <class Element>
int features_of_item(std::int64_t depth, std::int64_t features, std::int64_t items, int workers, int least = 8) {
  constexpr std::int64_t streams_bytes = 256 * 1024, each_worker = 16;
  std::int64_t const by_memory = streams_bytes / (depth * static_cast<std::int64_t>(sizeof(Element)));
  std::int64_t const by_work = items * features / (each_worker * workers);
  std::int64_t const fit = std::clamp<std::int64_t>(std::min(by_memory, by_work), least, item_features);
  return static_cast<int>(fit < 32 ? fit / 8 * 8 : fit / 32 * 32);  // whole vectors
}

}  // namespace switchyard::cpu
