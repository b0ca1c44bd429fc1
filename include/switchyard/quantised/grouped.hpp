#pragma once

#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/half.hpp>
#include <switchyard/core/host_device.hpp>

#include <cstdint>

/// Codes of 4 bits with a scale and a zero for each 128 inputs of an output, stored inputs first: [experts, columns, rows].
namespace switchyard::quantised {

/// Eight inputs of an output share a word (AutoGPTQ, GPTQModel; `checkpoint_format` gptq, inputs in order). The zero that counts is the stored one and
/// 1; where a checkpoint stores it whole (gptq_v2) `added_to_zero` is 0.
struct gptq {
  static constexpr char const* name = "gptq";
  static constexpr int granule = 8, whole = 8, whole_rows = 8, group = 128;

  std::uint32_t const* qweight = nullptr;  ///< [experts, columns / 8, rows], lowest code first
  std::uint32_t const* qzeros = nullptr;   ///< [experts, groups, rows / 8]
  half const* scales = nullptr;            ///< [experts, groups, rows]
  int rows = 0, columns = 0;
  int added_to_zero = 1;

  SWITCHYARD_HD constexpr std::int64_t groups() const { return divide_up(columns, group); }
  SWITCHYARD_HD void read(int expert, int row, int column, int count, float* to) const {
    std::int64_t const line = expert * groups() + column / group;
    float const scale = static_cast<float>(scales[line * rows + row]);
    int const zero = static_cast<int>(qzeros[line * (rows / 8) + row / 8] >> row % 8 * 4 & 15u) + added_to_zero;
    std::uint32_t const word = qweight[(std::int64_t{expert} * (columns / 8) + column / 8) * rows + row];
    for (int i = 0; i < count; ++i) {
      to[i] = scale * static_cast<float>(static_cast<int>(word >> (column + i) % 8 * 4 & 15u) - zero);
    }
  }
  SWITCHYARD_HD constexpr gptq from(int expert) const {
    return {qweight + std::int64_t{expert} * (columns / 8) * rows,
            qzeros + expert * groups() * (rows / 8),
            scales + expert * groups() * rows,
            rows,
            columns,
            added_to_zero};
  }
  template <class Arrays>
  void name_arrays(Arrays const& arrays, int experts) const {
    arrays.array("qweight", qweight, std::int64_t{experts} * (columns / 8) * rows,
                 "[experts, columns / 8, rows] words");
    arrays.array("qzeros", qzeros, experts * groups() * (rows / 8), "[experts, columns / 128, rows / 8] words");
    arrays.array("scales", scales, experts * groups() * rows, "[experts, columns / 128, rows] half");
  }
};

/// Eight outputs of an input share a word, in the order 0, 2, 4, 6, 1, 3, 5, 7 (AutoAWQ, GEMM).
struct awq {
  static constexpr char const* name = "awq";
  static constexpr int granule = 32, whole = 1, whole_rows = 8, group = 128;

  std::uint32_t const* qweight = nullptr;  ///< [experts, columns, rows / 8]
  std::uint32_t const* qzeros = nullptr;   ///< [experts, groups, rows / 8]
  half const* scales = nullptr;            ///< [experts, groups, rows]
  int rows = 0, columns = 0;

  SWITCHYARD_HD constexpr std::int64_t groups() const { return divide_up(columns, group); }
  SWITCHYARD_HD void read(int expert, int row, int column, int count, float* to) const {
    std::int64_t const line = expert * groups() + column / group;
    float const scale = static_cast<float>(scales[line * rows + row]);
    int const output = row % 8, shift = (output % 2 * 4 + output / 2) * 4;
    int const zero = static_cast<int>(qzeros[line * (rows / 8) + row / 8] >> shift & 15u);
    std::uint32_t const* const words = qweight + (std::int64_t{expert} * columns + column) * (rows / 8) + row / 8;
    for (int i = 0; i < count; ++i) {
      int const code = static_cast<int>(words[std::int64_t{i} * (rows / 8)] >> shift & 15u);
      to[i] = static_cast<float>(code - zero) * scale;
    }
  }
  SWITCHYARD_HD constexpr awq from(int expert) const {
    return {qweight + std::int64_t{expert} * columns * (rows / 8), qzeros + expert * groups() * (rows / 8),
            scales + expert * groups() * rows, rows, columns};
  }
  template <class Arrays>
  void name_arrays(Arrays const& arrays, int experts) const {
    arrays.array("qweight", qweight, std::int64_t{experts} * columns * (rows / 8),
                 "[experts, columns, rows / 8] words");
    arrays.array("qzeros", qzeros, experts * groups() * (rows / 8), "[experts, columns / 128, rows / 8] words");
    arrays.array("scales", scales, experts * groups() * rows, "[experts, columns / 128, rows] half");
  }
};

}  // namespace switchyard::quantised
