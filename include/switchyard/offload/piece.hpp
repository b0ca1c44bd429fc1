#pragma once

#include <switchyard/core/element.hpp>
#include <switchyard/core/operand.hpp>
#include <switchyard/core/text.hpp>
#include <switchyard/core/view.hpp>

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace switchyard::offload {

namespace detail {

/// How a matrix of an operand lies in a piece: as elements, output-major, or in the bytes of a format (`fits_pieces`).
template <class Operand>
struct matrix_in_piece {
  static constexpr std::string_view storage = Operand::storage;
  static constexpr std::int64_t bytes(int rows, int columns) { return Operand::bytes_of(rows, columns); }
  static Operand at(std::byte const* first, std::int64_t stride, int rows, int columns) {
    return Operand::in_pieces(first, stride, rows, columns);
  }
};
template <class T, projection Role>
struct matrix_in_piece<weight_view<T, Role>> {
  static constexpr std::string_view storage = element_name<T>;
  static constexpr std::int64_t bytes(int rows, int columns) {
    return std::int64_t{rows} * columns * static_cast<std::int64_t>(sizeof(T));
  }
  static weight_view<T, Role> at(std::byte const* first, std::int64_t stride, int, int columns) {
    return {reinterpret_cast<T const*>(first), stride / static_cast<std::int64_t>(sizeof(T)), columns, 1};
  }
};

}  // namespace detail

/// Where the weights of one expert stand in its piece: gate, up and down projection, then their biases, those that the expert has. Matrices
/// are output-major, [intermediate, hidden] and [hidden, intermediate], of the layer's elements or in blocks of quantised weights. Each begins at
/// a multiple of 64 bytes.
template <class Layer>
struct piece {
  using element = typename Layer::element;
  using in_operand = typename Layer::expert::template operand<element, projection::in>;
  using out_operand = typename Layer::expert::template operand<element, projection::out>;
  using in_matrix = detail::matrix_in_piece<in_operand>;
  using out_matrix = detail::matrix_in_piece<out_operand>;
  static constexpr bool gated = Layer::expert_traits.gated, has_bias = Layer::expert_traits.bias;
  static constexpr int hidden = Layer::dims.hidden, intermediate = Layer::dims.intermediate;

 private:
  static constexpr std::int64_t room_for(std::int64_t bytes_taken) { return (bytes_taken + 63) / 64 * 64; }
  static constexpr std::int64_t room_for_bias(std::int64_t size) {
    return has_bias ? room_for(size * static_cast<std::int64_t>(sizeof(element))) : 0;
  }
  static constexpr std::int64_t in_room = room_for(in_matrix::bytes(intermediate, hidden)),
                                out_room = room_for(out_matrix::bytes(hidden, intermediate));

 public:
  // Bytes from the begin of the piece.
  static constexpr std::int64_t gate = 0;
  static constexpr std::int64_t up = gated ? in_room : 0;
  static constexpr std::int64_t down = up + in_room;
  static constexpr std::int64_t gate_bias = down + out_room;
  static constexpr std::int64_t up_bias = gate_bias + (gated ? room_for_bias(intermediate) : 0);
  static constexpr std::int64_t down_bias = up_bias + room_for_bias(intermediate);
  static constexpr std::int64_t bytes = down_bias + room_for_bias(hidden);

  /// What tells its pieces from those of another layer: `bfloat16, gate and up [1024, 2048], down [2048, 1024], biases`.
  static constexpr std::string_view format() { return label; }

 private:
  template <bool Has, std::size_t Size>
  static constexpr auto text_if(char const (&words)[Size]) {
    if constexpr (Has) {
      return text(words);
    } else {
      return text<0>{};
    }
  }
  static constexpr auto label = text_of<in_matrix::storage>() + ", " + text_if<gated>("gate and ") + "up [" +
                                decimal<intermediate>() + ", " + decimal<hidden>() + "], down [" + decimal<hidden>() +
                                ", " + decimal<intermediate>() + "]" + text_if<has_bias>(", biases");
};

/// The weights of pieces that stand one after the other, as a layer's products read them: the expert of a view is the number of a piece.
template <class Layer>
struct placed_weights {
  using element = typename Layer::element;
  struct biases {
    bias_view<element, projection::in> gate = {}, up = {};
    bias_view<element, projection::out> down = {};
  };
  typename piece<Layer>::in_operand gate_proj = {}, up_proj = {};
  typename piece<Layer>::out_operand down_proj = {};
  biases bias = {};

  /// `stride` is bytes from one piece to the next.
  placed_weights(std::byte const* first, std::int64_t stride) {
    using at = piece<Layer>;
    [[maybe_unused]] std::int64_t const next = stride / static_cast<std::int64_t>(sizeof(element));
    [[maybe_unused]] auto const elements = [&](std::int64_t offset) {
      return reinterpret_cast<element const*>(first + offset);
    };
    if (at::gated) gate_proj = at::in_matrix::at(first + at::gate, stride, at::intermediate, at::hidden);
    up_proj = at::in_matrix::at(first + at::up, stride, at::intermediate, at::hidden);
    down_proj = at::out_matrix::at(first + at::down, stride, at::hidden, at::intermediate);
    if (at::has_bias) {
      if (at::gated) bias.gate = {elements(at::gate_bias), next, 1};
      bias.up = {elements(at::up_bias), next, 1};
      bias.down = {elements(at::down_bias), next, 1};
    }
  }
};

}  // namespace switchyard::offload
