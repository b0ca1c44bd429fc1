#pragma once

#include <switchyard/quantised/blocks.hpp>
#include <switchyard/quantised/scaled.hpp>

#include <algorithm>
#include <cstdint>

/// What products of quantised weights with tokens of 8 bits are made of. Tokens are cut into chunks of 32 values, which are multiples of
/// their largest magnitude / 127, to nearest; products of a chunk are summed as integers, and chunk after chunk is added as a float.
namespace switchyard {
template <class Element, class Format>
struct quantised_matrix;
}

namespace switchyard::cpu {

/// 32 neighbouring weights: codes times `scale`, minus `least`.
struct coded_chunk {
  std::int8_t codes[32];
  float scale, least;
};

/// Formats whose weights are small integers times a factor of 32 of them: `chunk(weights, expert, row, column, count, to)` gives `count` of
/// them, 32 but at the end of a row, and `at(weights, expert, row, column)` is where they stand.
template <class Format>
struct integer_codes {
  static constexpr bool exist = false;
};

template <class Block>
struct integer_codes_of_blocks {
  static constexpr bool exist = true;
  static std::uint8_t const* at(quantised::block_matrix<Block> const& w, int expert, int row, std::int64_t column) {
    return w.data + expert * w.expert_stride + row * w.row_stride + column / Block::weights * Block::bytes;
  }
  /// The low halves of 16 bytes, and then the high ones.
  template <class Value>
  static void halves(std::uint8_t const* bytes, Value const& value, std::int8_t* to) {
    for (int i = 0; i < 16; ++i) to[i] = value(bytes[i] & 15);
    for (int i = 0; i < 16; ++i) to[16 + i] = value(bytes[i] >> 4);
  }
};

template <>
struct integer_codes<quantised::block_matrix<quantised::q8_0>> : integer_codes_of_blocks<quantised::q8_0> {
  static constexpr bool has_least = false;
  static void chunk(quantised::block_matrix<quantised::q8_0> const& w, int expert, int row, std::int64_t column, int,
                    coded_chunk& to) {
    std::uint8_t const* const from = at(w, expert, row, column);
    to.scale = quantised::half_at(from);
    for (int i = 0; i < 32; ++i) to.codes[i] = static_cast<std::int8_t>(from[2 + i]);
  }
};

template <>
struct integer_codes<quantised::block_matrix<quantised::q4_0>> : integer_codes_of_blocks<quantised::q4_0> {
  static constexpr bool has_least = false;
  static void chunk(quantised::block_matrix<quantised::q4_0> const& w, int expert, int row, std::int64_t column, int,
                    coded_chunk& to) {
    std::uint8_t const* const from = at(w, expert, row, column);
    to.scale = quantised::half_at(from);
    halves(
        from + 2, [](int code) { return static_cast<std::int8_t>(code - 8); }, to.codes);
  }
};

/// Twice what a code of E2M1 stands for.
inline constexpr std::int8_t doubled_e2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

template <>
struct integer_codes<quantised::block_matrix<quantised::mxfp4_halves>>
    : integer_codes_of_blocks<quantised::mxfp4_halves> {
  static constexpr bool has_least = false;
  static void chunk(quantised::block_matrix<quantised::mxfp4_halves> const& w, int expert, int row, std::int64_t column,
                    int, coded_chunk& to) {
    std::uint8_t const* const from = at(w, expert, row, column);
    to.scale = 0.5f * quantised::e8m0(from[0]);
    halves(
        from + 1, [](int code) { return doubled_e2m1[code]; }, to.codes);
  }
};

template <>
struct integer_codes<quantised::block_matrix<quantised::q4_K>> : integer_codes_of_blocks<quantised::q4_K> {
  static constexpr bool has_least = true;
  static void chunk(quantised::block_matrix<quantised::q4_K> const& w, int expert, int row, std::int64_t column, int,
                    coded_chunk& to) {
    std::uint8_t const* const from = at(w, expert, row, column);
    std::uint8_t const* const s = from + 4;
    int const j = static_cast<int>(column % 256) / 32;
    int const scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
    int const least = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
    to.scale = quantised::half_at(from) * static_cast<float>(scale);
    to.least = quantised::half_at(from + 2) * static_cast<float>(least);
    std::uint8_t const* const codes = from + 16 + 32 * (j / 2);
    int const shift = j % 2 == 0 ? 0 : 4;
    for (int i = 0; i < 32; ++i) to.codes[i] = static_cast<std::int8_t>(codes[i] >> shift & 15);
  }
};

template <>
struct integer_codes<quantised::mxfp4> {
  static constexpr bool exist = true, has_least = false;
  static std::int64_t line(quantised::mxfp4 const& w, int expert, int row) {
    return (std::int64_t{expert} * w.rows + row) * w.row_stride;
  }
  static std::uint8_t const* at(quantised::mxfp4 const& w, int expert, int row, std::int64_t column) {
    return w.blocks + line(w, expert, row) * (w.columns / 2) + column / 2;
  }
  static void chunk(quantised::mxfp4 const& w, int expert, int row, std::int64_t column, int, coded_chunk& to) {
    std::uint8_t const* const pairs = at(w, expert, row, column);
    to.scale = 0.5f * quantised::e8m0(w.scales[line(w, expert, row) * (w.columns / 32) + column / 32]);
    for (int i = 0; i < 16; ++i) {
      to.codes[2 * i] = doubled_e2m1[pairs[i] & 15];
      to.codes[2 * i + 1] = doubled_e2m1[pairs[i] >> 4];
    }
  }
};

template <class Scale>
struct integer_codes<quantised::int8_channel<Scale>> {
  static constexpr bool exist = true, has_least = false;
  static std::int8_t const* at(quantised::int8_channel<Scale> const& w, int expert, int row, std::int64_t column) {
    return w.weight + (std::int64_t{expert} * w.rows + row) * w.columns + column;
  }
  static void chunk(quantised::int8_channel<Scale> const& w, int expert, int row, std::int64_t column, int count,
                    coded_chunk& to) {
    to.scale = static_cast<float>(w.scale[std::int64_t{expert} * w.rows + row]);
    std::copy_n(at(w, expert, row, column), count, to.codes);
  }
};

/// The codes of an operand.
template <class Operand>
struct operand_codes {
  static constexpr bool exist = false;
};
template <class Element, class Format>
struct operand_codes<quantised_matrix<Element, Format>> : integer_codes<Format> {};

}  // namespace switchyard::cpu
