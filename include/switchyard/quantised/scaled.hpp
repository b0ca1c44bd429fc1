#pragma once

#include <switchyard/core/bfloat16.hpp>
#include <switchyard/core/checks.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/host_device.hpp>
#include <switchyard/quantised/codes.hpp>

#include <cstdint>

/// Formats whose codes stand in one tensor and their scales in another, as safetensors checkpoints store them: [experts, rows, columns] with
/// rows as output features.
namespace switchyard::quantised {

/// No codes: weights of their own element, such as a projection that was left out of quantisation.
template <class Weight>
struct unquantised {
  static constexpr char const* name = "unquantised";
  static constexpr int granule = 32, whole = 1;

  Weight const* weight = nullptr;  ///< [experts, rows, columns]
  int rows = 0, columns = 0;

  SWITCHYARD_HD void read(int expert, int row, int column, int count, float* to) const {
    Weight const* const from = weight + (std::int64_t{expert} * rows + row) * columns + column;
    for (int i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
  }
  SWITCHYARD_HD constexpr unquantised from(int expert) const {
    return {weight + std::int64_t{expert} * rows * columns, rows, columns};
  }
  template <class Arrays>
  void name_arrays(Arrays const& arrays, int experts) const {
    arrays.array("weight", weight, std::int64_t{experts} * rows * columns, "[experts, rows, columns]");
  }
};

/// Codes of 4 bits, two in a byte: code 2 k is the low half of byte k.
SWITCHYARD_HD inline std::uint32_t code_of_pair(std::uint8_t const* bytes, int index) {
  return static_cast<std::uint32_t>(bytes[index / 2]) >> (index % 2 == 0 ? 0 : 4) & 15u;
}

/// Signed bytes with a scale for each row (compressed-tensors `int-quantized`). `Scale` is float or bfloat16.
template <class Scale>
struct int8_channel {
  static constexpr char const* name = "int8_channel";
  static constexpr int granule = 32, whole = 1;

  std::int8_t const* weight = nullptr;  ///< [experts, rows, columns]
  Scale const* scale = nullptr;         ///< [experts, rows]
  int rows = 0, columns = 0;

  SWITCHYARD_HD void read(int expert, int row, int column, int count, float* to) const {
    std::int64_t const line = std::int64_t{expert} * rows + row;
    std::int8_t const* const from = weight + line * columns + column;
    float const of_row = static_cast<float>(scale[line]);
    for (int i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]) * of_row;
  }
  SWITCHYARD_HD constexpr int8_channel from(int expert) const {
    std::int64_t const lines = std::int64_t{expert} * rows;
    return {weight + lines * columns, scale + lines, rows, columns};
  }
  template <class Arrays>
  void name_arrays(Arrays const& arrays, int experts) const {
    std::int64_t const lines = std::int64_t{experts} * rows;
    arrays.array("weight", weight, lines * columns, "[experts, rows, columns] int8");
    arrays.array("scale", scale, lines, "[experts, rows]");
  }
};

/// E4M3 with a scale for each matrix (compressed-tensors `float-quantized`).
template <class Scale>
struct fp8_tensor {
  static constexpr char const* name = "fp8_tensor";
  static constexpr int granule = 32, whole = 1;

  std::uint8_t const* weight = nullptr;  ///< [experts, rows, columns]
  Scale const* scale = nullptr;          ///< [experts]
  int rows = 0, columns = 0;

  SWITCHYARD_HD void read(int expert, int row, int column, int count, float* to) const {
    std::uint8_t const* const from = weight + (std::int64_t{expert} * rows + row) * columns + column;
    float const of_matrix = static_cast<float>(scale[expert]);
    for (int i = 0; i < count; ++i) to[i] = e4m3(from[i]) * of_matrix;
  }
  SWITCHYARD_HD constexpr fp8_tensor from(int expert) const {
    return {weight + std::int64_t{expert} * rows * columns, scale + expert, rows, columns};
  }
  template <class Arrays>
  void name_arrays(Arrays const& arrays, int experts) const {
    arrays.array("weight", weight, std::int64_t{experts} * rows * columns, "[experts, rows, columns] E4M3");
    arrays.array("scale", scale, experts, "[experts]");
  }
};

/// E4M3 with a scale for each square of 128 x 128 weights, which are cut at the borders (DeepSeek-V3). Weights are multiplied by
/// `weight_scale_inv`, in spite of its name.
struct fp8_block {
  static constexpr char const* name = "fp8_block";
  static constexpr int granule = 32, whole = 1, side = 128;

  std::uint8_t const* weight = nullptr;  ///< [experts, rows, columns]
  float const* scale_inv = nullptr;      ///< [experts, divide_up(rows, 128), divide_up(columns, 128)]
  int rows = 0, columns = 0;

  SWITCHYARD_HD constexpr std::int64_t squares() const { return divide_up(rows, side) * divide_up(columns, side); }
  SWITCHYARD_HD void read(int expert, int row, int column, int count, float* to) const {
    std::uint8_t const* const from = weight + (std::int64_t{expert} * rows + row) * columns + column;
    float const scale = scale_inv[expert * squares() + row / side * divide_up(columns, side) + column / side];
    for (int i = 0; i < count; ++i) to[i] = e4m3(from[i]) * scale;
  }
  SWITCHYARD_HD constexpr fp8_block from(int expert) const {
    return {weight + std::int64_t{expert} * rows * columns, scale_inv + expert * squares(), rows, columns};
  }
  template <class Arrays>
  void name_arrays(Arrays const& arrays, int experts) const {
    arrays.array("weight", weight, std::int64_t{experts} * rows * columns, "[experts, rows, columns] E4M3");
    arrays.array("scale_inv", scale_inv, experts * squares(), "[experts, rows / 128, columns / 128] float");
  }
};

/// E2M1 with a power of two for each 32 weights of a row (gpt-oss). `row_stride` counts rows: 2 where gate and up take turns in one tensor.
struct mxfp4 {
  static constexpr char const* name = "mxfp4";
  static constexpr int granule = 32, whole = 32;

  std::uint8_t const* blocks = nullptr;  ///< [experts, rows, columns / 32, 16]
  std::uint8_t const* scales = nullptr;  ///< [experts, rows, columns / 32]
  int rows = 0, columns = 0;
  int row_stride = 1;

  /// Gate (0) or up (1) of a tensor where their rows take turns; `rows` are those of one of them.
  static constexpr mxfp4 interleaved(std::uint8_t const* blocks, std::uint8_t const* scales, int rows, int columns,
                                     int which) {
    return {blocks + which * (columns / 2), scales + which * (columns / 32), rows, columns, 2};
  }
  SWITCHYARD_HD void read(int expert, int row, int column, int count, float* to) const {
    std::int64_t const line = (std::int64_t{expert} * rows + row) * row_stride;
    float const scale = e8m0(scales[line * (columns / 32) + column / 32]);
    std::uint8_t const* const from = blocks + line * (columns / 2) + column / 2;
    if (count == granule) {  // which the compiler makes vectors of
      for (int i = 0; i < granule / 2; ++i) {
        to[2 * i] = e2m1(from[i] & 15u) * scale;
        to[2 * i + 1] = e2m1(from[i] >> 4u) * scale;
      }
      return;
    }
    for (int i = 0; i < count; ++i) to[i] = e2m1(code_of_pair(from, column % 2 + i)) * scale;
  }
  SWITCHYARD_HD constexpr mxfp4 from(int expert) const {
    std::int64_t const lines = std::int64_t{expert} * rows * row_stride;
    return {blocks + lines * (columns / 2), scales + lines * (columns / 32), rows, columns, row_stride};
  }
  void check_strides(char const* what, int) const { checks::check_least_stride(row_stride, 1, 2, what, "row_stride"); }
  template <class Arrays>
  void name_arrays(Arrays const& arrays, int experts) const {
    std::int64_t const lines = (std::int64_t{experts} * rows - 1) * row_stride + 1;
    arrays.array("blocks", blocks, lines * (columns / 2), "[experts, rows, columns / 32, 16] bytes");
    arrays.array("scales", scales, lines * (columns / 32), "[experts, rows, columns / 32] bytes");
  }
};

/// What the scales of NVFP4 are multiplied by: compressed-tensors divides by its global scale, ModelOpt multiplies, and has no -0.
enum class global_scale { divides, multiplies };

/// E2M1 with an E4M3 for each 16 weights of a row and one float for a matrix.
template <global_scale Global>
struct nvfp4_of {
  static constexpr char const* name = Global == global_scale::divides ? "nvfp4" : "nvfp4_modelopt";
  static constexpr int granule = 16, whole = 16;

  std::uint8_t const* weight = nullptr;  ///< [experts, rows, columns / 2]
  std::uint8_t const* scale = nullptr;   ///< [experts, rows, columns / 16] E4M3
  float const* global = nullptr;         ///< [experts]
  int rows = 0, columns = 0;

  SWITCHYARD_HD void read(int expert, int row, int column, int count, float* to) const {
    std::int64_t const line = std::int64_t{expert} * rows + row;
    float const of_block = e4m3(scale[line * (columns / 16) + column / 16]);
    std::uint8_t const* const from = weight + line * (columns / 2);
    if constexpr (Global == global_scale::divides) {
      float const factor = of_block / global[expert];
      for (int i = 0; i < count; ++i) to[i] = e2m1(code_of_pair(from, column + i)) * factor;
    } else {
      float const factor = of_block * global[expert];
      for (int i = 0; i < count; ++i) to[i] = e2m1_without_minus_zero(code_of_pair(from, column + i)) * factor;
    }
  }
  SWITCHYARD_HD constexpr nvfp4_of from(int expert) const {
    std::int64_t const lines = std::int64_t{expert} * rows;
    return {weight + lines * (columns / 2), scale + lines * (columns / 16), global + expert, rows, columns};
  }
  template <class Arrays>
  void name_arrays(Arrays const& arrays, int experts) const {
    std::int64_t const lines = std::int64_t{experts} * rows;
    arrays.array("weight", weight, lines * (columns / 2), "[experts, rows, columns / 2] bytes");
    arrays.array("scale", scale, lines * (columns / 16), "[experts, rows, columns / 16] E4M3");
    arrays.array("global", global, experts, "[experts] float");
  }
};
using nvfp4 = nvfp4_of<global_scale::divides>;
using nvfp4_modelopt = nvfp4_of<global_scale::multiplies>;

/// Codes of 4 bits, 8 of which is zero, with a scale for each 32 weights of a row (compressed-tensors `pack-quantized`, symmetric).
struct int4_packed {
  static constexpr char const* name = "int4_packed";
  static constexpr int granule = 32, whole = 32;

  std::uint32_t const* weight = nullptr;  ///< [experts, rows, columns / 8], lowest code first
  bfloat16 const* scale = nullptr;        ///< [experts, rows, columns / 32]
  int rows = 0, columns = 0;

  SWITCHYARD_HD void read(int expert, int row, int column, int count, float* to) const {
    std::int64_t const line = std::int64_t{expert} * rows + row;
    float const of_group = static_cast<float>(scale[line * (columns / 32) + column / 32]);
    std::uint32_t const* const from = weight + line * (columns / 8);
    if (count == granule) {
      for (int w = 0; w < granule / 8; ++w) {
        std::uint32_t const word = from[column / 8 + w];
        for (int i = 0; i < 8; ++i)
          to[8 * w + i] = static_cast<float>(static_cast<int>(word >> 4 * i & 15u) - 8) * of_group;
      }
      return;
    }
    for (int i = 0; i < count; ++i) {
      int const at = column + i;
      to[i] = static_cast<float>(static_cast<int>(from[at / 8] >> at % 8 * 4 & 15u) - 8) * of_group;
    }
  }
  SWITCHYARD_HD constexpr int4_packed from(int expert) const {
    std::int64_t const lines = std::int64_t{expert} * rows;
    return {weight + lines * (columns / 8), scale + lines * (columns / 32), rows, columns};
  }
  template <class Arrays>
  void name_arrays(Arrays const& arrays, int experts) const {
    std::int64_t const lines = std::int64_t{experts} * rows;
    arrays.array("weight", weight, lines * (columns / 8), "[experts, rows, columns / 8] words");
    arrays.array("scale", scale, lines * (columns / 32), "[experts, rows, columns / 32] bfloat16");
  }
};

}  // namespace switchyard::quantised
