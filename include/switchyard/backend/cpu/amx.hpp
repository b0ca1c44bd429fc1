#pragma once

#include <switchyard/backend/cpu/panels.hpp>
#include <switchyard/core/bfloat16.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

/// Products by panels with AMX's tiles, which take bfloat16. Tiles have the weights as they stand in the checkpoint, 16
/// features of 32 elements; panels have the tokens in the order that tiles want them: for every 32 elements of depth and
/// every 16 tokens, pairs of elements that follow each other, token after token.
///
/// Floats come as two parts, each value's nearest bfloat16 and that of what is left, x = x0 + x1: a product is
/// w0 x0 + w0 x1 + w1 x0, and lacks w1 x1, some 2^-16 of it. Weights that are restored are floats, too: w0 x + w1 x with a bfloat16
/// token lacks 2^-18 of a weight at most, and nothing of one that is a bfloat16.
namespace switchyard::cpu::amx {

// Processors with tiles have these vectors; others only parse this file.
#if defined(__x86_64__)
namespace vectors = avx512;
#else
namespace vectors = portable;
#endif

/// The tiles of this processor, by number: sums 0 to 3, weights 4 and 5, tokens 6 and 7. All have 16 rows of 64 bytes.
#if defined(SWITCHYARD_EMULATED_TILES)
struct tiles : SWITCHYARD_EMULATED_TILES {};
#else
struct tiles {
#if defined(__x86_64__)
  void begin() {
    struct {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const shape;
    static_assert(sizeof shape == 64);
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  void end() { asm volatile("tilerelease"); }
  template <int Tile>
  void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(Tile));
  }
  template <int Tile>
  void load(void const* from, std::int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(Tile) : "memory");
  }
  template <int Tile>
  void store(void* to, std::int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(Tile) : "memory");
  }
  /// sums[f][t] += the sum over 32 elements of weights[f] * tokens[t]
  template <int Sums, int Weights, int Tokens>
  void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(Weights), "i"(Tokens));
  }
#endif
};
#endif

inline constexpr int chunk = 32, lanes = 16, features = 32;
inline constexpr std::int64_t line = 64;                  // bytes of a tile's row
inline constexpr std::int64_t tile_bytes = lanes * line;  // of 16 tokens and 32 elements

/// Parts that an element comes in.
template <class Element>
inline constexpr int parts_of = std::is_same_v<Element, float> ? 2 : 1;

template <class Operand>
inline constexpr int weight_parts = Operand::in_place ? parts_of<typename Operand::element> : 2;

/// Elements of depth that weights are made ready for at a time: a copy of them has to fit.
template <class Operand>
inline constexpr int most_depth = 384 / weight_parts<Operand>;
inline constexpr int item_panels = 3, item_tiles = 2;
static_assert(item_panels * item_tiles * features * 2 * lanes + features * 384 / 2 <= item_floats);

/// Where the first part of element k of row i stands in a panel; others are `chunk * lanes` further each.
inline std::int64_t position(std::int64_t k, int i, int width, int parts = 1) {
  return k / chunk * (chunk * width * parts) + i / lanes * (chunk * lanes * parts) + k % chunk / 2 * (2 * lanes) +
         i % lanes * 2 + k % 2;
}
inline std::uint32_t* pair_at(float* panel, std::int64_t k, int i, int width, int parts) {
  return reinterpret_cast<std::uint32_t*>(panel) + position(k / 2 * 2, i, width, parts) / 2;
}
inline constexpr std::int64_t part_words = chunk * lanes / 2;

template <class Element>
void pack_panel(Element const* const* rows, int row_count, int width, std::int64_t depth, float* panel) {
  constexpr int parts = parts_of<Element>;
  for (int first = 0; first < width; first += lanes) {
    int const count = std::clamp(row_count - first, 0, lanes);
    std::int64_t k = 0;
    for (; k + chunk <= depth; k += chunk) {
      vectors::pack_pairs(rows + first, count, k, pair_at(panel, k, first, width, parts), part_words);
    }
    if (k == depth) continue;
    Element padded[lanes][chunk] = {};
    Element const* last[lanes];
    for (int i = 0; i < lanes; ++i) {
      last[i] = padded[i];
      if (i < count) std::copy(rows[first + i] + k, rows[first + i] + depth, padded[i]);
    }
    vectors::pack_pairs(last, count, 0, pair_at(panel, k, first, width, parts), part_words);
  }
}

/// Elements come in their order, for an odd one completes its pair. With the last one come zeros behind it.
template <class Element>
void put_values(float const* values, int width, std::int64_t k, std::int64_t depth, float* panel) {
  constexpr int parts = parts_of<Element>;
  float const zeros[lanes] = {};
  std::int64_t const end = k + 1 == depth ? divide_up(depth, chunk) * chunk : k + 1;
  for (int i = 0; i < width; i += lanes) {
    vectors::put_in_pairs<parts>(values + i, k % 2 == 1, pair_at(panel, k, i, width, parts), part_words);
    for (std::int64_t behind = k + 1; behind < end; ++behind) {
      vectors::put_in_pairs<parts>(zeros, behind % 2 == 1, pair_at(panel, behind, i, width, parts), part_words);
    }
  }
}

/// Zeroes what is less than the `kept`-th largest value of each row, some neighbouring rows at a time.
template <class Element>
void keep_largest(float* panel, int width, std::int64_t depth, int kept, float const* factors) {
  constexpr int parts = parts_of<Element>, together = portable::lanes;
  using portable::floats, portable::integers, portable::words;
  auto* const first = reinterpret_cast<bfloat16*>(panel);
  // Two elements of each row, which follow each other, and their parts.
  auto const load = [&](std::int64_t k, int i, int part) -> words {
    words pairs;
    __builtin_memcpy(&pairs, first + position(k, i, width, parts) + part * (chunk * lanes), sizeof pairs);
    return pairs;
  };
  auto const keys_of = [&](std::int64_t k, int i, bool odd) -> integers {
    floats sum = {};
    for (int part = 0; part < parts; ++part) {
      words const pairs = load(k, i, part);
      sum += reinterpret_cast<floats>(odd ? pairs & 0xffff0000u : pairs << 16);
    }
    if (factors != nullptr) sum *= k + odd < depth ? factors[k + odd] : 1.0f;
    return portable::order_keys(sum);
  };
  for (int i = 0; i < width; i += together) {
    words least = {};  // nvcc crashes where a vector begins as a sum of constants
    least += 1u << 31;
    for (int bit = 31; bit >= (parts == 1 && factors == nullptr ? 16 : 0); --bit) {
      words const tried = least + (1u << bit);
      integers counts = {};
      for (std::int64_t k = 0; k < depth; ++k) {
        integers const keys = keys_of(k / 2 * 2, i, k % 2 == 1), large = keys >= reinterpret_cast<integers>(tried);
        counts -= large;
      }
      words const enough = reinterpret_cast<words>(counts >= kept);
      least = (enough & tried) | (~enough & least);
    }
    for (std::int64_t k = 0; k < depth; k += 2) {  // zeros behind the last element stay zeros
      integers const keys[2] = {keys_of(k, i, false), keys_of(k, i, true)};
      integers const large[2] = {keys[0] >= reinterpret_cast<integers>(least),
                                 keys[1] >= reinterpret_cast<integers>(least)};
      words const even = reinterpret_cast<words>(large[0]), odd = reinterpret_cast<words>(large[1]);
      for (int part = 0; part < parts; ++part) {
        words const pairs = load(k, i, part) & ((even & 0xffffu) | (odd & 0xffff0000u));
        __builtin_memcpy(static_cast<void*>(first + position(k, i, width, parts) + part * (chunk * lanes)), &pairs,
                         sizeof pairs);
      }
    }
  }
}

/// Copies a piece of the weights of a tile: some features at a time, part after part.
template <class Operand>
ready_weights copy_weights(feature_tile<Operand> const& tile, std::int64_t first, int depth, float* memory) {
  using element = std::conditional_t<Operand::in_place, typename Operand::element, float>;
  constexpr int parts = weight_parts<Operand>, pitch = most_depth<Operand>, step = 8;
  auto* const copy = reinterpret_cast<bfloat16*>(memory);
  int const padded = static_cast<int>(divide_up(depth, chunk)) * chunk;
  for (int f = 0; f < features; f += step) {
    element rows[step][pitch];  // what is beyond the weights' edges is zero
    int const count = std::clamp(tile.features - f, 0, step);
    if (count < step || depth < padded) std::fill_n(&rows[0][0], step * pitch, element{});
    if constexpr (!Operand::in_place) {
      using restored = vectors::restored<Operand>;
      using order = typename restored::order;
      for (int i = 0; i < count; ++i) {
        if constexpr (vectors::stored<order>::in_order) {
          restored::read(*tile.weights, tile.expert, tile.first + f + i, first, depth, rows[i]);
        } else {
          float in_its_order[pitch];
          restored::read(*tile.weights, tile.expert, tile.first + f + i, first, depth, in_its_order);
          for (int k = 0; k < depth; ++k) rows[i][k] = in_its_order[vectors::depth_position<order>(k, depth)];
        }
      }
    } else {
      element const* const from = tile.rows + f * tile.row_stride + first * tile.column_stride;
      for (int i = 0; tile.column_stride == 1 && i < count; ++i) {
        std::copy_n(from + i * tile.row_stride, depth, rows[i]);
      }
      // Features that lie beside each other are read beside each other.
      for (int k = 0; tile.column_stride != 1 && k < depth; ++k) {
        for (int i = 0; i < count; ++i) rows[i][k] = from[k * tile.column_stride + i * tile.row_stride];
      }
    }
    for (int i = 0; i < step; ++i) {
      bfloat16* const to = copy + (f + i) * pitch;
      if constexpr (parts == 1) {
        std::copy_n(rows[i], padded, to);
      } else {
        vectors::split_row(rows[i], padded, to, features * pitch);
      }
    }
  }
  return {copy, pitch * static_cast<std::int64_t>(sizeof(bfloat16))};
}

/// The weights where they are, or, where they do not fill tiles as they stand, a copy that does.
template <class Operand>
ready_weights prepare(feature_tile<Operand> const& tile, std::int64_t first, int depth, float* memory) {
  if constexpr (weight_parts<Operand> == 1) {
    if (tile.column_stride == 1 && tile.features == features && depth % chunk == 0) {
      return {tile.rows + first, tile.row_stride * static_cast<std::int64_t>(sizeof(bfloat16))};
    }
  }
  return copy_weights(tile, first, depth, memory);
}

/// sums[f][i] (+)= products of 32 features and 16 or 32 tokens, two by two tiles at a time.
template <class Tiles, int WeightParts, int TokenParts, int Width>
void multiply_panel(ready_weights const& weights, float const* panel, int depth, bool first, float* sums,
                    fetched_rows const& fetched) {
  constexpr bool full = Width == 2 * lanes;
  constexpr std::int64_t sums_stride = Width * sizeof(float);
  Tiles t;
  auto* const upper = sums;
  auto* const lower = sums + lanes * Width;
  if (first) {
    t.template zero<0>();
    t.template zero<2>();
    if constexpr (full) t.template zero<1>();
    if constexpr (full) t.template zero<3>();
  } else {
    t.template load<0>(upper, sums_stride);
    t.template load<2>(lower, sums_stride);
    if constexpr (full) t.template load<1>(upper + lanes, sums_stride);
    if constexpr (full) t.template load<3>(lower + lanes, sums_stride);
  }
  auto const* from = static_cast<char const*>(weights.first);
  auto const* tokens = reinterpret_cast<char const*>(panel);
  for (int k = 0; k < depth; k += chunk, from += line, tokens += TokenParts * Width * line) {
    for (int row = 0; row < fetched.rows; ++row) {
      for (int part = 0; part < WeightParts; ++part) {  // as many cache lines as a row of the tile comes from
        __builtin_prefetch(fetched.first + row * fetched.stride + k * fetched.element_bytes + part * line, 0, 2);
      }
    }
    t.template load<4>(from, weights.stride);
    t.template load<6>(tokens, line);
    t.template multiply<0, 4, 6>();
    t.template load<5>(from + lanes * weights.stride, weights.stride);
    t.template multiply<2, 5, 6>();
    if constexpr (full) {
      t.template load<7>(tokens + TokenParts * tile_bytes, line);
      t.template multiply<1, 4, 7>();
      t.template multiply<3, 5, 7>();
    }
    if constexpr (TokenParts == 2) {
      t.template load<6>(tokens + tile_bytes, line);
      t.template multiply<0, 4, 6>();
      t.template multiply<2, 5, 6>();
      if constexpr (full) {
        t.template load<7>(tokens + 3 * tile_bytes, line);
        t.template multiply<1, 4, 7>();
        t.template multiply<3, 5, 7>();
      }
      t.template load<6>(tokens, line);
      if constexpr (full) t.template load<7>(tokens + 2 * tile_bytes, line);
    }
    if constexpr (WeightParts == 2) {
      auto const* const rest = from + features * weights.stride;
      t.template load<4>(rest, weights.stride);
      t.template multiply<0, 4, 6>();
      t.template load<5>(rest + lanes * weights.stride, weights.stride);
      t.template multiply<2, 5, 6>();
      if constexpr (full) {
        t.template multiply<1, 4, 7>();
        t.template multiply<3, 5, 7>();
      }
    }
  }
  t.template store<0>(upper, sums_stride);
  t.template store<2>(lower, sums_stride);
  if constexpr (full) t.template store<1>(upper + lanes, sums_stride);
  if constexpr (full) t.template store<3>(lower + lanes, sums_stride);
}

template <class Tiles, class Operand>
panel_kernels<Operand> panel_kernels_with() {
  using element = typename Operand::element;
  return {lanes,
          2 * lanes,
          features,
          most_depth<Operand>,
          item_panels,
          item_tiles,
          weight_parts<Operand> == 1,
          2 / parts_of<element>,
          false,
          parts_of<element> == 1 ? lanes : 64,  // the same however weights are stored, so that results are
          [] { Tiles().begin(); },
          [] { Tiles().end(); },
          &pack_panel<element>,
          &put_values<element>,
          &vectors::put_rows,
          &keep_largest<element>,
          &prepare<Operand>,
          &multiply_panel<Tiles, weight_parts<Operand>, parts_of<element>, 2 * lanes>,
          &multiply_panel<Tiles, weight_parts<Operand>, parts_of<element>, lanes>};
}

}  // namespace switchyard::cpu::amx
