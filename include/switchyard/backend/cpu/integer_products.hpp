#pragma once

#include <switchyard/quantised/blocks.hpp>
#include <switchyard/quantised/scaled.hpp>

#include <cstdint>

/// What products of quantised weights with tokens of 8 bits are made of. Tokens are cut into chunks of 32 values, which are multiples of
/// their largest magnitude / 127, to nearest; products of a chunk are summed as integers, and become a float. Of 16 chunks
/// those 8 apart are added, then those 4 apart, then what this makes to the sums of the chunks before; at the end sums 2 apart, and the two.
namespace switchyard {
template <class Element, class Format>
struct quantised_matrix;
}

namespace switchyard::cpu {

/// Chunks that are multiplied side by side, and values of one.
inline constexpr int piece_chunks = 16, chunk_depth = 32, integer_piece_depth = piece_chunks * chunk_depth;

/// How the codes of a chunk of weights stand in memory.
enum class code_order {
  bytes,   ///< signed
  halves,  ///< the low halves of 16 bytes, then the high ones
  pairs,   ///< the low and the high half of a byte in turn
  planes   ///< the low halves of 32 bytes; the high ones are the next chunk
};
enum class scale_form {
  half_numbers,
  powers,    ///< of two, E8M0
  of_rows,   ///< one for each row
  six_bits,  ///< q4_K: scales and minima of 6 bits times two half numbers for 256 weights
};

/// Where chunks of a row of weights stand.
struct code_line {
  std::uint8_t const* codes;
  void const* scales;
};

/// Formats whose weights are small integers times a factor of 32 of them, minus a least value where there is one: `line(weights, expert,
/// row, chunk)` is where a chunk stands, `code_step` and `scale_step` the bytes to the next one. Codes are unsigned when they are
/// multiplied, and `zero` stands for none.
template <class Format>
struct integer_codes {
  static constexpr bool exist = false;
};

template <class Block>
struct integer_codes_of_blocks {
  static constexpr bool exist = true, has_least = false;
  static constexpr int code_step = Block::bytes, scale_step = Block::bytes;
  template <int CodesAt>
  static code_line line_of(quantised::block_matrix<Block> const& w, int expert, int row, int chunk) {
    std::uint8_t const* const block = w.data + expert * w.expert_stride + row * w.row_stride +
                                      std::int64_t{chunk} * chunk_depth / Block::weights * Block::bytes;
    return {block + CodesAt, block};
  }
};

template <>
struct integer_codes<quantised::block_matrix<quantised::q8_0>> : integer_codes_of_blocks<quantised::q8_0> {
  static constexpr code_order order = code_order::bytes;
  static constexpr scale_form scales = scale_form::half_numbers;
  static constexpr int zero = 128;
  static code_line line(quantised::block_matrix<quantised::q8_0> const& w, int expert, int row, int chunk) {
    return line_of<2>(w, expert, row, chunk);
  }
};

template <>
struct integer_codes<quantised::block_matrix<quantised::q4_0>> : integer_codes_of_blocks<quantised::q4_0> {
  static constexpr code_order order = code_order::halves;
  static constexpr scale_form scales = scale_form::half_numbers;
  static constexpr int zero = 8;
  static code_line line(quantised::block_matrix<quantised::q4_0> const& w, int expert, int row, int chunk) {
    return line_of<2>(w, expert, row, chunk);
  }
};

/// 12 more than twice what a code of E2M1 stands for.
inline constexpr std::uint8_t shifted_e2m1[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

template <>
struct integer_codes<quantised::block_matrix<quantised::mxfp4_halves>>
    : integer_codes_of_blocks<quantised::mxfp4_halves> {
  static constexpr code_order order = code_order::halves;
  static constexpr scale_form scales = scale_form::powers;
  static constexpr int zero = 12;
  static code_line line(quantised::block_matrix<quantised::mxfp4_halves> const& w, int expert, int row, int chunk) {
    return line_of<1>(w, expert, row, chunk);
  }
};

/// A line begins at a block of eight chunks.
template <>
struct integer_codes<quantised::block_matrix<quantised::q4_K>> : integer_codes_of_blocks<quantised::q4_K> {
  static constexpr bool has_least = true;
  static constexpr code_order order = code_order::planes;
  static constexpr scale_form scales = scale_form::six_bits;
  static constexpr int code_step = 18, scale_step = 18;  // of which eight have a meaning
  static constexpr int zero = 0;
  static code_line line(quantised::block_matrix<quantised::q4_K> const& w, int expert, int row, int chunk) {
    return line_of<16>(w, expert, row, chunk);
  }
};

template <>
struct integer_codes<quantised::mxfp4> {
  static constexpr bool exist = true, has_least = false;
  static constexpr code_order order = code_order::pairs;
  static constexpr scale_form scales = scale_form::powers;
  static constexpr int code_step = 16, scale_step = 1, zero = 12;
  static code_line line(quantised::mxfp4 const& w, int expert, int row, int chunk) {
    std::int64_t const first = (std::int64_t{expert} * w.rows + row) * w.row_stride * (w.columns / 32) + chunk;
    return {w.blocks + first * 16, w.scales + first};
  }
};

template <class Scale>
struct integer_codes<quantised::int8_channel<Scale>> {
  static constexpr bool exist = true, has_least = false;
  static constexpr code_order order = code_order::bytes;
  static constexpr scale_form scales = scale_form::of_rows;
  static constexpr int code_step = 32, scale_step = 0, zero = 128;
  using scale = Scale;
  static code_line line(quantised::int8_channel<Scale> const& w, int expert, int row, int chunk) {
    std::int64_t const line = std::int64_t{expert} * w.rows + row;
    return {reinterpret_cast<std::uint8_t const*>(w.weight + line * w.columns + std::int64_t{chunk} * chunk_depth),
            w.scale + line};
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
