#pragma once

#include <switchyard/core/element.hpp>
#include <switchyard/core/text.hpp>
#include <switchyard/core/view.hpp>

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace switchyard::offload {

/// Where the weights of one expert stand in its piece: gate, up and down projection, then their biases, those that the expert has. Matrices
/// are output-major, [intermediate, hidden] and [hidden, intermediate], of the layer's elements. Each begins at a multiple of 64 bytes.
template <class Layer>
struct piece {
  using element = typename Layer::element;
  static constexpr bool gated = Layer::expert_traits.gated, has_bias = Layer::expert_traits.bias;
  static constexpr std::int64_t hidden = Layer::dims.hidden, intermediate = Layer::dims.intermediate;

 private:
  static constexpr std::int64_t room_for(std::int64_t elements) {
    return (elements * static_cast<std::int64_t>(sizeof(element)) + 63) / 64 * 64;
  }
  static constexpr std::int64_t matrix = room_for(hidden * intermediate),
                                inner_bias = has_bias ? room_for(intermediate) : 0;

 public:
  // Bytes from the begin of the piece.
  static constexpr std::int64_t gate = 0;
  static constexpr std::int64_t up = gated ? matrix : 0;
  static constexpr std::int64_t down = up + matrix;
  static constexpr std::int64_t gate_bias = down + matrix;
  static constexpr std::int64_t up_bias = gate_bias + (gated ? inner_bias : 0);
  static constexpr std::int64_t down_bias = up_bias + inner_bias;
  static constexpr std::int64_t bytes = down_bias + (has_bias ? room_for(hidden) : 0);

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
  static constexpr auto label = text_of<element_name<element>>() + ", " + text_if<gated>("gate and ") + "up [" +
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
  weight_view<element, projection::in> gate_proj = {}, up_proj = {};
  weight_view<element, projection::out> down_proj = {};
  biases bias = {};

  /// `stride` is bytes from one piece to the next.
  placed_weights(std::byte const* first, std::int64_t stride) {
    using at = piece<Layer>;
    [[maybe_unused]] std::int64_t const next = stride / static_cast<std::int64_t>(sizeof(element));
    auto const elements = [&](std::int64_t offset) { return reinterpret_cast<element const*>(first + offset); };
    if (at::gated) gate_proj = {elements(at::gate), next, at::hidden, 1};
    up_proj = {elements(at::up), next, at::hidden, 1};
    down_proj = {elements(at::down), next, at::intermediate, 1};
    if (at::has_bias) {
      if (at::gated) bias.gate = {elements(at::gate_bias), next, 1};
      bias.up = {elements(at::up_bias), next, 1};
      bias.down = {elements(at::down_bias), next, 1};
    }
  }
};

}  // namespace switchyard::offload
