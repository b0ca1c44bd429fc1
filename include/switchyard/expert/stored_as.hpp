#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/core/host_device.hpp>
#include <switchyard/core/operand.hpp>
#include <switchyard/core/text.hpp>
#include <switchyard/expert/feed_forward.hpp>
#include <switchyard/layer.hpp>

#include <string>
#include <string_view>
#include <type_traits>

namespace switchyard {

/// A matrix for each expert in a format of quantised weights, as the operand of a layer whose tokens are `Element`s: products widen weights while
/// they read them, exactly, to the floats that the format says.
///
/// `Format` describes arrays: it has `rows` and `columns`, reads weights as an operand does (`granule`, `read`, `from`,
/// `name_arrays(arrays, experts)`), and says of how many columns a row has to be a multiple (`whole`).
template <class Element, class Format>
struct quantised_matrix {
  using element = Element;
  static constexpr bool in_place = false;
  static constexpr int granule = Format::granule;

  Format of = {};

  quantised_matrix() = default;
  SWITCHYARD_HD constexpr quantised_matrix(Format const& matrix) : of(matrix) {}
  /// What `any_of` may be.
  template <class Other>
  requires(!std::is_same_v<Other, Format> && !std::is_same_v<Other, quantised_matrix> &&
           std::is_convertible_v<Other const&, Format>) quantised_matrix(Other const& matrix)
      : of(matrix) {}

  SWITCHYARD_HD void read(int expert, int row, int column, int count, float* to) const {
    of.read(expert, row, column, count, to);
  }
  SWITCHYARD_HD quantised_matrix from(int expert) const { return {of.from(expert)}; }
  template <class Arrays>
  void name_arrays(Arrays const& arrays, int experts, int, int) const {
    of.name_arrays(arrays, experts);
  }
};

namespace expert {

/// Experts whose matrices are stored as quantised weights, used where they lie: `Format` is one of `quantised/`, or a user's own.
///
///   layer<shape, router::softmax_top_k, capacity::dropless, expert::stored_as<expert::gated_mlp<silu>, quantised::block_matrix<quantised::q4_K>>>
///
/// Tokens, biases, a shared expert and results are the layer's elements. Results are those of the same weights as floats.
template <class Base, class Format>
struct stored_as : Base {
  static_assert(
      std::is_same_v<typename Base::template operand<float, projection::in>, weight_view<float, projection::in>>,
      "switchyard: expert::stored_as says how the matrices of expert::mlp or expert::gated_mlp are stored, and this "
      "expert has others. Take what stands between off.");
  static constexpr auto label = "stored_as<" + name_of<Base>() + ">";
  static constexpr std::string_view name = label;

  template <class Element, projection Role>
  using operand = quantised_matrix<Element, Format>;

  template <class Layer>
  static void check(feed_forward_weights<Layer> const& w) {
    Base::template check<Layer>(w);
    constexpr int hidden = Layer::dims.hidden, inner = Layer::dims.intermediate;
    if constexpr (Layer::expert_traits.gated) check_sizes(w.gate_proj.of, "weights.gate_proj", inner, hidden);
    check_sizes(w.up_proj.of, "weights.up_proj", inner, hidden);
    check_sizes(w.down_proj.of, "weights.down_proj", hidden, inner);
  }

 private:
  static void check_sizes(Format const& w, char const* matrix, int rows, int columns) {
    auto const size = [](int all_rows, int all_columns) {
      return std::to_string(all_rows) + " x " + std::to_string(all_columns);
    };
    if (w.rows != rows || w.columns != columns) {
      fail(std::string("layer::forward, ") + matrix + ", rows x columns", size(rows, columns), size(w.rows, w.columns));
    }
    int whole = 1;
    if constexpr (requires { w.whole(); }) {
      whole = w.whole();
    } else {
      whole = Format::whole;
    }
    if (columns % whole != 0) {
      fail(std::string("layer::forward, ") + matrix,
           "rows of whole blocks, " + std::to_string(whole) + " weights each (store this projection in another format)",
           std::to_string(columns) + " columns");
    }
  }
};

}  // namespace expert
}  // namespace switchyard
