#pragma once

#include <switchyard/core/checks.hpp>
#include <switchyard/core/half.hpp>
#include <switchyard/core/host_device.hpp>
#include <switchyard/quantised/codes.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>

/// Formats whose blocks have codes and scales side by side, as GGUF files store them. A block is a struct: how many neighbouring weights of a row
/// it has, how many bytes, and how some of them are widened. One of a user's own is used like these.
///
/// Source: ggml's ggml-common.h describes the layouts, and the package gguf what they mean.
namespace switchyard::quantised {

/// The half at an address, which need not be aligned.
SWITCHYARD_HD inline float half_at(std::uint8_t const* bytes) {
  half value;
  value.bits = static_cast<std::uint16_t>(bytes[0] | bytes[1] << 8);
  return static_cast<float>(value);
}

/// d, and 32 signed bytes.
struct q8_0 {
  static constexpr char const* name = "q8_0";
  static constexpr int weights = 32, bytes = 34;
  SWITCHYARD_HD static void widen(std::uint8_t const* block, int first, int count, float* to) {
    float const d = half_at(block);
    for (int i = 0; i < count; ++i) to[i] = static_cast<float>(static_cast<std::int8_t>(block[2 + first + i])) * d;
  }
};

/// d, and 32 codes of 4 bits, 8 of which is zero: the first 16 are the low halves of bytes.
struct q4_0 {
  static constexpr char const* name = "q4_0";
  static constexpr int weights = 32, bytes = 18;
  SWITCHYARD_HD static void widen(std::uint8_t const* block, int first, int count, float* to) {
    float const d = half_at(block);
    std::uint8_t const* const codes = block + 2;
    if (count == weights) {  // which the compiler makes vectors of
      for (int i = 0; i < 16; ++i) to[i] = d * static_cast<float>((codes[i] & 15) - 8);
      for (int i = 0; i < 16; ++i) to[16 + i] = d * static_cast<float>((codes[i] >> 4) - 8);
      return;
    }
    for (int i = 0; i < count; ++i) {
      int const at = first + i;
      to[i] = d * static_cast<float>((codes[at % 16] >> (at < 16 ? 0 : 4) & 15) - 8);
    }
  }
};

/// A power of two, and 32 codes of E2M1 in the order of `q4_0`.
struct mxfp4_halves {
  static constexpr char const* name = "mxfp4_halves";
  static constexpr int weights = 32, bytes = 17;
  SWITCHYARD_HD static void widen(std::uint8_t const* block, int first, int count, float* to) {
    float const scale = e8m0(block[0]);
    std::uint8_t const* const codes = block + 1;
    if (count == weights) {
      for (int i = 0; i < 16; ++i) to[i] = e2m1_without_minus_zero(codes[i] & 15u) * scale;
      for (int i = 0; i < 16; ++i) to[16 + i] = e2m1_without_minus_zero(codes[i] >> 4u) * scale;
      return;
    }
    for (int i = 0; i < count; ++i) {
      int const at = first + i;
      to[i] = e2m1_without_minus_zero(codes[at % 16] >> (at < 16 ? 0 : 4) & 15u) * scale;
    }
  }
};

/// d and dmin for 256 weights, 6 bits of scale and 6 of minimum for each 32 of them, codes of 4 bits.
struct q4_K {
  static constexpr char const* name = "q4_K";
  static constexpr int weights = 256, bytes = 144;
  SWITCHYARD_HD static void widen(std::uint8_t const* block, int first, int count, float* to) {
    std::uint8_t const* const s = block + 4;
    int const j = first / 32;
    int const scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
    int const least = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
    float const d = half_at(block) * static_cast<float>(scale), m = half_at(block + 2) * static_cast<float>(least);
    std::uint8_t const* const codes = block + 16 + 32 * (j / 2) + first % 32;
    int const shift = j % 2 == 0 ? 0 : 4;
    for (int i = 0; i < count; ++i) to[i] = d * static_cast<float>(codes[i] >> shift & 15) - m;
  }
};

/// d for 256 weights behind all else, a signed byte of scale for each 16 of them, codes of 6 bits, 32 of which is zero.
struct q6_K {
  static constexpr char const* name = "q6_K";
  static constexpr int weights = 256, bytes = 210;
  SWITCHYARD_HD static void widen(std::uint8_t const* block, int first, int count, float* to) {
    float const d = half_at(block + 208);
    int const h = first / 128, j = first / 32 % 4, l = first % 32;
    std::uint8_t const *const low = block + 64 * h + 32 * (j % 2) + l, *const high = block + 128 + 32 * h + l;
    int const low_shift = j < 2 ? 0 : 4, high_shift = 2 * j;
    for (int begin = 0, run = 16 - first % 16; begin < count; begin += run, run = 16) {
      if (run > count - begin) run = count - begin;
      float const scale = d * static_cast<float>(static_cast<std::int8_t>(block[192 + (first + begin) / 16]));
      for (int i = begin; i < begin + run; ++i) {
        int const code = (high[i] >> high_shift & 3) << 4 | (low[i] >> low_shift & 15);
        to[i] = scale * static_cast<float>(code - 32);
      }
    }
  }
};

/// Matrices of such blocks: those of a row stand one after the other.
template <class Block>
struct block_matrix {
  static constexpr char const* name = Block::name;
  static constexpr int granule = 32, whole = Block::weights;
  static_assert(Block::weights % granule == 0,
                "switchyard: a block has a multiple of 32 weights, for products read so many at a time.");

  std::uint8_t const* data = nullptr;  ///< [experts, rows, columns / weights, bytes]
  std::int64_t expert_stride = 0;      ///< bytes from one matrix to the next
  std::int64_t row_stride = 0;         ///< bytes from one row to the next
  int rows = 0, columns = 0;           ///< of a matrix

  /// Matrices [experts, rows, columns] back to back.
  static constexpr block_matrix packed(std::uint8_t const* first, int rows, int columns) {
    return strided(first, bytes_of(rows, columns), rows, columns);
  }
  /// Matrices whose rows stand back to back, `expert_stride` bytes apart.
  static constexpr block_matrix strided(std::uint8_t const* first, std::int64_t expert_stride, int rows, int columns) {
    return {first, expert_stride, bytes_of(1, columns), rows, columns};
  }
  /// Bytes of a matrix.
  SWITCHYARD_HD static constexpr std::int64_t bytes_of(int rows, int columns) {
    return std::int64_t{columns} / Block::weights * Block::bytes * rows;
  }
  /// Puts the matrix of an expert somewhere, rows back to back.
  void copy_expert(int expert, std::uint8_t* to) const {
    std::int64_t const row = bytes_of(1, columns);
    for (int r = 0; r < rows; ++r) {
      std::memcpy(to + r * row, data + expert * expert_stride + r * row_stride, static_cast<std::size_t>(row));
    }
  }
  SWITCHYARD_HD void read(int expert, int row, int column, int count, float* to) const {
    std::uint8_t const* const line = data + expert * expert_stride + row * row_stride;
    Block::widen(line + std::int64_t{column} / Block::weights * Block::bytes, column % Block::weights, count, to);
  }
  SWITCHYARD_HD constexpr block_matrix from(int expert) const {
    return {data + expert * expert_stride, expert_stride, row_stride, rows, columns};
  }
  void check_strides(char const* what, int experts) const {
    checks::check_least_stride(row_stride, bytes_of(1, columns), rows, what, "row_stride");
    checks::check_least_stride(expert_stride, rows * row_stride, experts, what, "expert_stride");
  }
  template <class Arrays>
  void name_arrays(Arrays const& arrays, int experts) const {
    arrays.array("data", data, (experts - 1) * expert_stride + (rows - 1) * row_stride + bytes_of(1, columns),
                 "[experts, rows, blocks of a row, bytes of a block]");
  }
};

}  // namespace switchyard::quantised
