#pragma once

#include <switchyard/core/host_device.hpp>

#include <cstdint>
#include <type_traits>

namespace switchyard {

/// A row-major matrix that somebody else owns. Rows may be apart by more than their length.
template <class T>
struct view {
  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t row_stride = 0;  ///< elements from one row to the next

  view() = default;
  SWITCHYARD_HD constexpr view(T* first, std::int64_t row_count, std::int64_t column_count)
      : view(first, row_count, column_count, column_count) {}
  SWITCHYARD_HD constexpr view(T* first, std::int64_t row_count, std::int64_t column_count, std::int64_t stride)
      : data(first), rows(row_count), columns(column_count), row_stride(stride) {}

  /// A view that may write converts to one that only reads.
  template <class U>
  requires(std::is_same_v<U const, T>) SWITCHYARD_HD constexpr view(view<U> const& other)
      : view(other.data, other.rows, other.columns, other.row_stride) {}

  SWITCHYARD_HD constexpr T* row(std::int64_t index) const { return data + index * row_stride; }
};

/// The product that a matrix or a bias belongs to. What `layer::in_proj` and `layer::out_proj` make knows its own, and does not fit
/// the other; a view that is put together by hand fits both.
enum class projection {
  any,
  in,  ///< gate or up
  out  ///< down
};

/// Whether something of one product may stand for something of another, with the sentence where it may not.
template <projection From, projection To>
SWITCHYARD_HD constexpr void check_projection() {
  static_assert(
      From == To || From == projection::any || To == projection::any,
      "switchyard: a projection stands in the place of another one. gate_proj and up_proj, and their biases, are "
      "[experts, intermediate, ...] and made by in_proj, split_gate_up and in_bias; down_proj and its bias are "
      "[experts, hidden, ...] and made by out_proj and out_bias.");
}

/// One matrix per expert, described by strides in elements: entry (expert, row, column) stands at
/// `data[expert * expert_stride + row * row_stride + column * column_stride]`.
/// Rows are output features, columns are input features, as in every published checkpoint's linear layers. It is the operand
/// (core/operand.hpp) that stands in memory as it is multiplied.
template <class T, projection Role = projection::any>
struct weight_view {
  using element = T;
  static constexpr bool in_place = true;
  static constexpr int granule = 32;

  T const* data = nullptr;
  std::int64_t expert_stride = 0;
  std::int64_t row_stride = 0;
  std::int64_t column_stride = 1;

  /// Matrices `[experts, rows, columns]` back to back.
  static constexpr weight_view packed(T const* first, std::int64_t rows, std::int64_t columns) {
    return {first, rows * columns, columns, 1};
  }
  /// Matrices stored the other way round, `[experts, columns, rows]` back to back.
  static constexpr weight_view transposed(T const* first, std::int64_t rows, std::int64_t columns) {
    return {first, rows * columns, 1, rows};
  }

  template <projection Other>
  requires(Other != Role) SWITCHYARD_HD constexpr operator weight_view<T, Other>() const {
    check_projection<Role, Other>();
    return {data, expert_stride, row_stride, column_stride};
  }

  SWITCHYARD_HD constexpr T const* at(std::int64_t expert, std::int64_t row, std::int64_t column) const {
    return data + expert * expert_stride + row * row_stride + column * column_stride;
  }
  SWITCHYARD_HD void read(int expert, int row, int column, int count, float* to) const {
    T const* const from = at(expert, row, column);
    for (int i = 0; i < count; ++i) to[i] = static_cast<float>(from[i * column_stride]);
  }
  SWITCHYARD_HD constexpr weight_view from(int expert) const {
    return {at(expert, 0, 0), expert_stride, row_stride, column_stride};
  }
  template <class Arrays>
  void name_arrays(Arrays const& arrays, int experts, int rows, int columns) const {
    arrays.matrices(data, experts, expert_stride, rows, row_stride, columns, column_stride);
  }
};

/// One vector per expert by strides: entry (expert, index) stands at
/// `data[expert * expert_stride + index * stride]`.
template <class T, projection Role = projection::any>
struct bias_view {
  T const* data = nullptr;
  std::int64_t expert_stride = 0;
  std::int64_t stride = 1;

  /// Vectors `[experts, size]` back to back.
  static constexpr bias_view packed(T const* first, std::int64_t size) { return {first, size, 1}; }

  template <projection Other>
  requires(Other != Role) SWITCHYARD_HD constexpr operator bias_view<T, Other>() const {
    check_projection<Role, Other>();
    return {data, expert_stride, stride};
  }

  /// The value of one feature, 0 where there is no bias.
  SWITCHYARD_HD constexpr float at(std::int64_t expert, std::int64_t feature) const {
    return data == nullptr ? 0.0f : static_cast<float>(data[expert * expert_stride + feature * stride]);
  }
  SWITCHYARD_HD constexpr bias_view from(int expert) const {
    return {data + expert * expert_stride, expert_stride, stride};
  }
};

/// How one tensor holds both the gate and the up projection.
enum class gate_up_order {
  concatenated,  ///< first all gate features, then all up features (Mixtral fused, Qwen, Granite, Llama 4)
  interleaved    ///< gate and up features take turns, gate first (gpt-oss)
};

/// Which feature of a stored matrix runs slowest.
enum class storage {
  output_major,  ///< `[experts, 2 * intermediate, hidden]`
  input_major    ///< `[experts, hidden, 2 * intermediate]` (gpt-oss and Llama 4 checkpoints)
};

template <class T>
struct gate_up_views {
  weight_view<T, projection::in> gate, up;
};

/// Gate and up projection inside one tensor, seen as two without a copy.
template <class T>
constexpr gate_up_views<T> split_gate_up(T const* first, std::int64_t intermediate, std::int64_t hidden,
                                         gate_up_order order = gate_up_order::concatenated,
                                         storage stored = storage::output_major) {
  bool const by_output = stored == storage::output_major;
  std::int64_t const feature = by_output ? hidden : 1;  // distance of two output features
  std::int64_t const column = by_output ? 1 : 2 * intermediate;
  bool const concatenated = order == gate_up_order::concatenated;
  std::int64_t const row = concatenated ? feature : 2 * feature;
  std::int64_t const up = concatenated ? intermediate * feature : feature;
  std::int64_t const expert = 2 * intermediate * hidden;
  return {{first, expert, row, column}, {first + up, expert, row, column}};
}

template <class T>
struct gate_up_bias_views {
  bias_view<T, projection::in> gate, up;
};

/// Gate and up bias inside one tensor `[experts, 2 * intermediate]`.
template <class T>
constexpr gate_up_bias_views<T> split_gate_up_bias(T const* first, std::int64_t intermediate,
                                                   gate_up_order order = gate_up_order::concatenated) {
  bool const concatenated = order == gate_up_order::concatenated;
  std::int64_t const stride = concatenated ? 1 : 2;
  return {{first, 2 * intermediate, stride}, {first + (concatenated ? intermediate : 1), 2 * intermediate, stride}};
}

}  // namespace switchyard
