#pragma once

#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/core/bfloat16.hpp>
#include <switchyard/core/checks.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/finite.hpp>
#include <switchyard/core/half.hpp>
#include <switchyard/quantised/blocks.hpp>
#include <switchyard/quantised/check_weights.hpp>
#include <switchyard/quantised/grouped.hpp>
#include <switchyard/quantised/narrow.hpp>
#include <switchyard/quantised/scaled.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

/// Makes quantised weights of floats, on the host. Not part of switchyard.hpp: trained weights go through it once.
namespace switchyard::quantised {

/// The arrays of a `Format`, which are its first members, in the same order.
template <class Format, class... Numbers>
struct owned {
  std::tuple<std::vector<Numbers>...> arrays;
  int rows = 0, columns = 0;

  owned(int row_count, int column_count, std::vector<Numbers>... of)
      : arrays(std::move(of)...), rows(row_count), columns(column_count) {}

  template <int Index>
  auto& array() {
    return std::get<Index>(arrays);
  }
  /// The matrices. The arrays must outlive them.
  Format view() const {
    return std::apply(
        [this](auto const&... of) {
          if constexpr (requires { Format::packed(of.data()..., rows, columns); }) {
            return Format::packed(of.data()..., rows, columns);
          } else {
            return Format{of.data()..., rows, columns};
          }
        },
        arrays);
  }
  std::int64_t bytes() const {
    return std::apply([](auto const&... of) { return static_cast<std::int64_t>((... + (of.size() * sizeof(of[0])))); },
                      arrays);
  }
};

namespace detail {

template <class Number>
std::vector<Number> numbers(std::int64_t experts, std::int64_t of_expert, Number value = {}) {
  return std::vector<Number>(static_cast<std::size_t>(experts * of_expert), value);
}

/// One matrix that is to be quantised, and the size of its largest weight.
struct dense_matrix {
  float const* weights;
  int expert, rows, columns;
  float largest;

  float const* row(int number) const { return weights + std::int64_t{number} * columns; }
  std::int64_t line(int number) const { return std::int64_t{expert} * rows + number; }
};

/// What is divided by, where all weights are 0 or nearly so.
template <class Scale>
constexpr float least_scale = 0x1p-23f;  // the distance from 1 to the next number, as published
template <>
inline constexpr float least_scale<bfloat16> = 0x1p-7f;
template <class Scale>
Scale scale_of(float largest, float largest_code) {
  Scale const scale(largest / largest_code);
  return static_cast<float>(scale) == 0.0f ? Scale(least_scale<Scale>) : scale;
}
inline int code_of(float weight, float scale, int least, int most) {
  return narrowing::clamped(narrowing::nearest(weight / scale), least, most);
}

/// How a format is made: `empty` arrays, and `fill`, which makes some neighbouring rows of a matrix, `rows_together` or those that
/// are left.
template <class Format>
struct quantiser;

template <class Block>
struct quantiser<block_matrix<Block>> {
  static constexpr int rows_together = 1;
  using result = owned<block_matrix<Block>, std::uint8_t>;
  static std::int64_t row_bytes(int columns) { return std::int64_t{columns} / Block::weights * Block::bytes; }
  static result empty(int experts, int rows, int columns) {
    return {rows, columns, numbers<std::uint8_t>(experts, rows * row_bytes(columns))};
  }
  static void fill(result& to, dense_matrix const& m, int first, int) {
    std::uint8_t* block = to.template array<0>().data() + m.line(first) * row_bytes(m.columns);
    for (int column = 0; column < m.columns; column += Block::weights, block += Block::bytes) {
      narrow(Block{}, m.row(first) + column, block);
    }
  }
};

template <class Scale>
struct quantiser<int8_channel<Scale>> {
  static constexpr int rows_together = 1;
  using result = owned<int8_channel<Scale>, std::int8_t, Scale>;
  static result empty(int experts, int rows, int columns) {
    return {rows, columns, numbers<std::int8_t>(experts, std::int64_t{rows} * columns), numbers<Scale>(experts, rows)};
  }
  static void fill(result& to, dense_matrix const& m, int first, int) {
    Scale const scale = scale_of<Scale>(narrowing::largest(m.row(first), m.columns), 127.5f);
    to.template array<1>()[static_cast<std::size_t>(m.line(first))] = scale;
    std::int8_t* const codes = to.template array<0>().data() + m.line(first) * m.columns;
    for (int i = 0; i < m.columns; ++i) {
      codes[i] = static_cast<std::int8_t>(code_of(m.row(first)[i], static_cast<float>(scale), -128, 127));
    }
  }
};

template <class Scale>
struct quantiser<fp8_tensor<Scale>> {
  static constexpr int rows_together = 1;
  using result = owned<fp8_tensor<Scale>, std::uint8_t, Scale>;
  static result empty(int experts, int rows, int columns) {
    return {rows, columns, numbers<std::uint8_t>(experts, std::int64_t{rows} * columns), numbers<Scale>(experts, 1)};
  }
  static void fill(result& to, dense_matrix const& m, int first, int) {
    Scale const scale = scale_of<Scale>(m.largest, 448.0f);
    if (first == 0) to.template array<1>()[static_cast<std::size_t>(m.expert)] = scale;
    std::uint8_t* const codes = to.template array<0>().data() + m.line(first) * m.columns;
    for (int i = 0; i < m.columns; ++i) codes[i] = to_e4m3(m.row(first)[i] / static_cast<float>(scale));
  }
};

template <>
struct quantiser<fp8_block> {
  static constexpr int rows_together = fp8_block::side;
  using result = owned<fp8_block, std::uint8_t, float>;
  static result empty(int experts, int rows, int columns) {
    return {rows, columns, numbers<std::uint8_t>(experts, std::int64_t{rows} * columns),
            numbers<float>(experts, fp8_block{.rows = rows, .columns = columns}.squares())};
  }
  static void fill(result& to, dense_matrix const& m, int first, int count) {
    constexpr int side = fp8_block::side;
    int const across = static_cast<int>(divide_up(m.columns, side));
    float* const scales = to.array<1>().data() + m.expert * (divide_up(m.rows, side) * across) + first / side * across;
    for (int square = 0; square < across; ++square) {
      int const begin = square * side, width = m.columns - begin < side ? m.columns - begin : side;
      float largest = 0;
      for (int row = first; row < first + count; ++row) {
        float const of_row = narrowing::largest(m.row(row) + begin, width);
        largest = of_row > largest ? of_row : largest;
      }
      float const scale = largest / 448.0f == 0.0f ? 1.0f : largest / 448.0f;
      scales[square] = scale;
      for (int row = first; row < first + count; ++row) {
        std::uint8_t* const codes = to.array<0>().data() + m.line(row) * m.columns + begin;
        for (int i = 0; i < width; ++i) codes[i] = to_e4m3(m.row(row)[begin + i] / scale);
      }
    }
  }
};

/// Puts a code of 4 bits beside its neighbour, which stands already where it is the second one.
inline void put_code(std::uint8_t* bytes, int index, std::uint32_t code) {
  std::uint8_t& byte = bytes[index / 2];
  byte = static_cast<std::uint8_t>(index % 2 == 0 ? code : byte | code << 4);
}

template <>
struct quantiser<mxfp4> {
  static constexpr int rows_together = 1;
  using result = owned<mxfp4, std::uint8_t, std::uint8_t>;
  static result empty(int experts, int rows, int columns) {
    return {rows, columns, numbers<std::uint8_t>(experts, std::int64_t{rows} * (columns / 2)),
            numbers<std::uint8_t>(experts, std::int64_t{rows} * (columns / 32))};
  }
  static void fill(result& to, dense_matrix const& m, int first, int) {
    std::uint8_t* const codes = to.array<0>().data() + m.line(first) * (m.columns / 2);
    std::uint8_t* const scales = to.array<1>().data() + m.line(first) * (m.columns / 32);
    for (int begin = 0; begin < m.columns; begin += 32) {
      float const* const weights = m.row(first) + begin;
      // The next power of two, so that nothing is cut off.
      float const least = narrowing::largest(weights, 32) / 6.0f;
      std::uint32_t const exponent = (__builtin_bit_cast(std::uint32_t, least) + 0x007fffffu) >> 23;
      scales[begin / 32] = static_cast<std::uint8_t>(exponent);
      float const inverse = exponent == 0u ? 0.0f : 1.0f / e8m0(exponent);
      for (int i = 0; i < 32; ++i) {
        put_code(codes, begin + i, to_e2m1(weights[i] * inverse, ties::away_from_zero));
      }
    }
  }
};

template <global_scale Global>
struct quantiser<nvfp4_of<Global>> {
  static constexpr int rows_together = 1;
  static constexpr bool divides = Global == global_scale::divides;
  using result = owned<nvfp4_of<Global>, std::uint8_t, std::uint8_t, float>;
  static result empty(int experts, int rows, int columns) {
    return {rows, columns, numbers<std::uint8_t>(experts, std::int64_t{rows} * (columns / 2)),
            numbers<std::uint8_t>(experts, std::int64_t{rows} * (columns / 16)), numbers<float>(experts, 1)};
  }
  /// So that the largest scale of a group is 448 where the largest code is 6.
  static float global_of(float largest) {
    float const global = divides ? 448.0f * 6.0f / largest : largest / 6.0f / 448.0f;
    return global == 0.0f || !is_finite(global) ? 1.0f : global;
  }
  static void fill(result& to, dense_matrix const& m, int first, int) {
    float const global = global_of(m.largest);
    if (first == 0) to.template array<2>()[static_cast<std::size_t>(m.expert)] = global;
    std::uint8_t* const codes = to.template array<0>().data() + m.line(first) * (m.columns / 2);
    std::uint8_t* const scales = to.template array<1>().data() + m.line(first) * (m.columns / 16);
    for (int begin = 0; begin < m.columns; begin += 16) {
      float const* const weights = m.row(first) + begin;
      float const largest = narrowing::largest(weights, 16);
      std::uint8_t scale = to_e4m3(divides ? global * (largest / 6.0f) : largest / (6.0f * global));
      if (scale == 0) scale = to_e4m3(divides ? 0.125f : largest == 0.0f ? 1.0f : 0x1p-9f);
      scales[begin / 16] = scale;
      float const factor = divides ? e4m3(scale) / global : e4m3(scale) * global;
      for (int i = 0; i < 16; ++i) put_code(codes, begin + i, to_e2m1(weights[i] / factor, ties::to_even));
    }
  }
};

template <>
struct quantiser<int4_packed> {
  static constexpr int rows_together = 1;
  using result = owned<int4_packed, std::uint32_t, bfloat16>;
  static result empty(int experts, int rows, int columns) {
    return {rows, columns, numbers<std::uint32_t>(experts, std::int64_t{rows} * (columns / 8)),
            numbers<bfloat16>(experts, std::int64_t{rows} * (columns / 32))};
  }
  static void fill(result& to, dense_matrix const& m, int first, int) {
    std::uint32_t* const words = to.array<0>().data() + m.line(first) * (m.columns / 8);
    bfloat16* const scales = to.array<1>().data() + m.line(first) * (m.columns / 32);
    for (int begin = 0; begin < m.columns; begin += 32) {
      float const* const weights = m.row(first) + begin;
      bfloat16 const scale = scale_of<bfloat16>(narrowing::largest(weights, 32), 7.5f);
      scales[begin / 32] = scale;
      for (int i = 0; i < 32; ++i) {
        auto const code = static_cast<std::uint32_t>(code_of(weights[i], static_cast<float>(scale), -8, 7) + 8);
        words[(begin + i) / 8] |= code << i % 8 * 4;
      }
    }
  }
};

/// The half that is to be divided by, and not 0.
inline half half_scale(float scale) {
  half const result(scale);
  return result.bits == 0 ? half(0x1p-24f) : result;
}

template <>
struct quantiser<gptq> {
  static constexpr int rows_together = 1;
  using result = owned<gptq, std::uint32_t, std::uint32_t, half>;
  static result empty(int experts, int rows, int columns) {
    std::int64_t const groups = divide_up(columns, gptq::group);
    return {rows, columns, numbers<std::uint32_t>(experts, std::int64_t{columns / 8} * rows),
            numbers<std::uint32_t>(experts, groups * (rows / 8), 0x77777777u),  // 8, stored less 1
            numbers<half>(experts, groups * rows)};
  }
  static void fill(result& to, dense_matrix const& m, int row, int) {
    std::uint32_t* const words = to.array<0>().data() + std::int64_t{m.expert} * (m.columns / 8) * m.rows + row;
    half* const scales = to.array<2>().data() + m.expert * divide_up(m.columns, gptq::group) * m.rows + row;
    for (int begin = 0; begin < m.columns; begin += gptq::group) {
      int const width = m.columns - begin < gptq::group ? m.columns - begin : gptq::group;
      half const scale = half_scale(narrowing::largest(m.row(row) + begin, width) / 7.5f);
      scales[std::int64_t{begin / gptq::group} * m.rows] = scale;
      for (int column = begin; column < begin + width; ++column) {
        int const code = code_of(m.row(row)[column], static_cast<float>(scale), -8, 7) + 8;
        words[std::int64_t{column / 8} * m.rows] |= static_cast<std::uint32_t>(code) << column % 8 * 4;
      }
    }
  }
};

template <>
struct quantiser<awq> {
  static constexpr int rows_together = 8;  // which share words
  using result = owned<awq, std::uint32_t, std::uint32_t, half>;
  static result empty(int experts, int rows, int columns) {
    std::int64_t const groups = divide_up(columns, awq::group);
    return {rows, columns, numbers<std::uint32_t>(experts, std::int64_t{columns} * (rows / 8)),
            numbers<std::uint32_t>(experts, groups * (rows / 8)), numbers<half>(experts, groups * rows)};
  }
  static void fill(result& to, dense_matrix const& m, int first, int count) {
    std::int64_t const width_in_words = m.rows / 8, groups = divide_up(m.columns, awq::group);
    std::uint32_t* const words = to.array<0>().data() + m.expert * m.columns * width_in_words + first / 8;
    std::uint32_t* const zeros = to.array<1>().data() + m.expert * groups * width_in_words + first / 8;
    half* const scales = to.array<2>().data() + m.expert * groups * m.rows;
    for (int output = 0; output < count; ++output) {
      int const shift = (output % 2 * 4 + output / 2) * 4;
      float const* const row = m.row(first + output);
      for (int group = 0; group < groups; ++group) {
        int const begin = group * awq::group;
        int const end = m.columns - begin < awq::group ? m.columns : begin + awq::group;
        float least = 0, most = 0;  // with 0, which has a code then
        for (int column = begin; column < end; ++column) {
          least = row[column] < least ? row[column] : least;
          most = row[column] > most ? row[column] : most;
        }
        float const range = most - least;
        half const scale = half_scale((range < 1e-5f ? 1e-5f : range) / 15.0f);
        scales[std::int64_t{group} * m.rows + first + output] = scale;
        int const zero = code_of(-least, static_cast<float>(scale), 0, 15);
        zeros[group * width_in_words] |= static_cast<std::uint32_t>(zero) << shift;
        for (int column = begin; column < end; ++column) {
          int const code = code_of(row[column], static_cast<float>(scale), -zero, 15 - zero) + zero;
          words[column * width_in_words] |= static_cast<std::uint32_t>(code) << shift;
        }
      }
    }
  }
};

}  // namespace detail

/// Weights [experts, rows, columns] of float, bfloat16 or half, rows as output features, in a `Format` of `blocks.hpp`, `scaled.hpp` or
/// `grouped.hpp`. What is returned owns the arrays; its `view()` is the `Format` that a layer reads. The result depends on the weights alone,
/// not on how many threads make it.
///
///   auto const gate = quantised::quantise<quantised::block_matrix<quantised::q4_K>>(weights, experts, intermediate, hidden);
///   args.weights.gate_proj = gate.view();
///
/// A block of a user's own is made by a function `narrow(block, float const* weights, std::uint8_t* bytes)` beside it.
///
/// Throws where rows are no whole blocks, where a weight is not finite, and where it is too large for the format's scales. README.md of this
/// folder has how each format chooses its scales and where that is published.
template <class Format, class Weight>
auto quantise(Weight const* weights, int experts, int rows, int columns, cpu_context const& context = {}) {
  static_assert(std::is_same_v<Weight, float> || std::is_same_v<Weight, bfloat16> || std::is_same_v<Weight, half>,
                "switchyard: quantise makes codes of float, bfloat16 and half.");
  using made = detail::quantiser<Format>;
  if (weights == nullptr || experts < 1 || rows < 1 || columns < 1) {
    fail("quantise, weights", "at least one matrix of at least one weight",
         weights == nullptr ? "a null pointer"
                            : std::to_string(experts) + " x " + std::to_string(rows) + " x " + std::to_string(columns));
  }
  checks::check_whole_blocks(Format{}, rows, columns, "quantise, weights");
  cpu_context const workers = cpu::resolved(context);
  auto result = made::empty(experts, rows, columns);
  std::int64_t const size = std::int64_t{rows} * columns;
  std::vector<float> widened;
  for (int e = 0; e < experts; ++e) {
    detail::dense_matrix matrix{nullptr, e, rows, columns, 0};
    if constexpr (std::is_same_v<Weight, float>) {
      matrix.weights = weights + e * size;
    } else {
      widened.resize(static_cast<std::size_t>(size));
      for (std::int64_t i = 0; i < size; ++i) widened[i] = static_cast<float>(weights[e * size + i]);
      matrix.weights = widened.data();
    }
    for (std::int64_t i = 0; i < size; ++i) {
      float const weight = matrix.weights[i];
      if (!is_finite(weight)) fail_weight("quantise, weights", weight, e, i / columns, i % columns);
      float const magnitude = std::fabs(weight);
      matrix.largest = magnitude > matrix.largest ? magnitude : matrix.largest;
    }
    cpu::parallel_for(workers, divide_up(rows, made::rows_together), [&](std::int64_t item) {
      int const first = static_cast<int>(item) * made::rows_together, left = rows - first;
      made::fill(result, matrix, first, left < made::rows_together ? left : made::rows_together);
    });
  }
  check_weights(result.view(), experts, "quantise, what became of the weights", workers);
  return result;
}

}  // namespace switchyard::quantised
