#pragma once

#include <switchyard/core/checks.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/host_device.hpp>
#include <switchyard/core/operand.hpp>
#include <switchyard/core/text.hpp>
#include <switchyard/expert/feed_forward.hpp>
#include <switchyard/layer.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

namespace switchyard {

/// A matrix for each expert in a format of quantised weights, as the operand of a layer whose tokens are `Element`s: products widen weights while
/// they read them, exactly, to the floats that the format says.
///
/// `Format` describes arrays: it has `rows` and `columns`, reads weights as an operand does (`granule`, `read`, `from`,
/// `name_arrays(arrays, experts)`), and says of how many columns a row has to be a multiple (`whole`). It may say of how many rows a matrix has to
/// be one (`whole_rows`), and check strides that it has (`check_strides(name, experts)`).
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

  // Of a format with one array: see `fits_pieces`.
  static constexpr std::string_view storage = Format::name;
  static constexpr std::int64_t bytes_of(int rows,
                                         int columns) requires(requires { Format::bytes_of(rows, columns); }) {
    return Format::bytes_of(rows, columns);
  }
  static quantised_matrix in_pieces(std::byte const* first, std::int64_t stride, int rows, int columns) {
    return Format::strided(reinterpret_cast<std::uint8_t const*>(first), stride, rows, columns);
  }
  void copy_expert(int expert, std::byte* to) const { of.copy_expert(expert, reinterpret_cast<std::uint8_t*>(to)); }
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
    if constexpr (!feed_forward_weights<Layer>::in_cache) {
      check_matrices<Layer>(w);
    } else {
      static_assert(Layer::dims.hidden % Format::whole == 0 && Layer::dims.intermediate % Format::whole == 0,
                    "switchyard: rows of shape.hidden and of shape.intermediate weights are no whole blocks of this "
                    "format. Take a format of smaller blocks.");
    }
  }

 private:
  template <class Layer>
  static void check_matrices(feed_forward_weights<Layer> const& w) {
    constexpr int hidden = Layer::dims.hidden, inner = Layer::dims.intermediate;
    if constexpr (Layer::expert_traits.gated) check_matrix<Layer>(w.gate_proj, "weights.gate_proj", inner, hidden);
    check_matrix<Layer>(w.up_proj, "weights.up_proj", inner, hidden);
    check_matrix<Layer>(w.down_proj, "weights.down_proj", hidden, inner);
  }

  template <class Layer, class Operand>
  static void check_matrix(Operand const& w, std::string_view matrix, int rows, int columns) {
    std::string const what = "layer::forward, " + std::string(matrix) + (shares_base<Operand> ? ".base" : "");
    check_sizes(base_of(w).of, what.c_str(), shares_base<Operand> ? 1 : Layer::dims.experts, rows, columns);
  }

  static void check_sizes(Format const& w, char const* what, int experts, int rows, int columns) {
    auto const size = [](int all_rows, int all_columns) {
      return std::to_string(all_rows) + " x " + std::to_string(all_columns);
    };
    if (w.rows != rows || w.columns != columns) {
      fail(std::string(what) + ", rows x columns", size(rows, columns), size(w.rows, w.columns));
    }
    checks::check_whole_blocks(w, rows, columns, what);
    if constexpr (requires { w.check_strides(what, experts); }) w.check_strides(what, experts);
  }
};

}  // namespace expert
}  // namespace switchyard
