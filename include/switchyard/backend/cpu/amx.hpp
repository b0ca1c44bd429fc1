#pragma once

#include <switchyard/backend/cpu/panels.hpp>
#include <switchyard/core/bfloat16.hpp>

#include <algorithm>
#include <cstdint>

/// Products by panels with AMX's tiles, in bfloat16. Tiles have the weights as they stand in the checkpoint, 16 features of
/// 32 elements; panels have the tokens in the order that tiles want them: for every 32 elements of depth and every 16
/// tokens, pairs of elements that follow each other, token after token.
namespace switchyard::backend::detail::amx {

/// The tiles of this processor, by number: sums 0 to 3, weights 4 and 5, tokens 6 and 7. All have 16 rows of 64 bytes.
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

inline constexpr int chunk = 32, lanes = 16, features = 32;
inline constexpr std::int64_t line = 64;  // bytes of a tile's row

/// Where element k of row i stands in a panel.
inline std::int64_t place(std::int64_t k, int i, int width) {
  return k / chunk * chunk * width + i / lanes * (chunk * lanes) + k % chunk / 2 * (2 * lanes) + i % lanes * 2 + k % 2;
}

inline void pack_panel(bfloat16 const* const* rows, int row_count, int width, std::int64_t depth, float* panel) {
  auto* const to = reinterpret_cast<bfloat16*>(panel);
  std::int64_t const padded = divide_up(depth, chunk) * chunk;
  for (std::int64_t k = 0; k < padded; k += 2) {
    for (int i = 0; i < width; ++i) {
      bfloat16* const pair = to + place(k, i, width);
      pair[0] = i < row_count && k < depth ? rows[i][k] : bfloat16{};
      pair[1] = i < row_count && k + 1 < depth ? rows[i][k + 1] : bfloat16{};
    }
  }
}

/// With the last element of the depth, also zeros behind it.
inline void put_values(float const* values, int width, std::int64_t k, std::int64_t depth, float* panel) {
  auto* const to = reinterpret_cast<bfloat16*>(panel);
  for (int i = 0; i < width; ++i) to[place(k, i, width)] = bfloat16(values[i]);
  for (std::int64_t behind = depth; k + 1 == depth && behind % chunk != 0; ++behind) {
    for (int i = 0; i < width; ++i) to[place(behind, i, width)] = bfloat16{};
  }
}

/// The weights where they are, or, where they do not fill tiles as they stand, a copy that does.
inline ready_weights prepare(bfloat16 const* from, std::int64_t row_stride, std::int64_t column_stride, int count,
                             int depth, float* memory) {
  if (column_stride == 1 && count == features && depth % chunk == 0) {
    return {from, row_stride * static_cast<std::int64_t>(sizeof(bfloat16))};
  }
  auto* const copy = reinterpret_cast<bfloat16*>(memory);
  for (int f = 0; f < features; ++f) {
    for (int k = 0; k < panel_depth; ++k) {
      copy[f * panel_depth + k] = f < count && k < depth ? from[f * row_stride + k * column_stride] : bfloat16{};
    }
  }
  return {copy, panel_depth * static_cast<std::int64_t>(sizeof(bfloat16))};
}

/// sums[f][i] (+)= products of 32 features and 16 or 32 tokens, two by two tiles at a time.
template <class Tiles, int Width>
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
  for (int k = 0; k < depth; k += chunk, from += line, tokens += Width * line) {
    for (int row = 0; row < fetched.rows; ++row) {
      __builtin_prefetch(fetched.first + row * fetched.stride + k * fetched.element_bytes, 0, 2);
    }
    t.template load<4>(from, weights.stride);
    t.template load<6>(tokens, line);
    t.template multiply<0, 4, 6>();
    t.template load<5>(from + lanes * weights.stride, weights.stride);
    t.template multiply<2, 5, 6>();
    if constexpr (full) {
      t.template load<7>(tokens + lanes * line, line);
      t.template multiply<1, 4, 7>();
      t.template multiply<3, 5, 7>();
    }
  }
  t.template store<0>(upper, sums_stride);
  t.template store<2>(lower, sums_stride);
  if constexpr (full) t.template store<1>(upper + lanes, sums_stride);
  if constexpr (full) t.template store<3>(lower + lanes, sums_stride);
}

template <class Tiles>
panel_functions<bfloat16> panel_functions_with() {
  return {lanes,
          2 * lanes,
          features,
          8,
          4,
          2,
          [] { Tiles().begin(); },
          [] { Tiles().end(); },
          &pack_panel,
          &put_values,
          &prepare,
          &multiply_panel<Tiles, 2 * lanes>,
          &multiply_panel<Tiles, lanes>};
}

}  // namespace switchyard::backend::detail::amx
