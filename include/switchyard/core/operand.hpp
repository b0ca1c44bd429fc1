#pragma once

#include <switchyard/core/checks.hpp>
#include <switchyard/core/host_device.hpp>
#include <switchyard/core/view.hpp>

#include <concepts>
#include <type_traits>

/// What a product reads its weights from.
namespace switchyard {

/// The right factor of a product: a matrix [rows, columns] of weights for each expert, where rows are output features.
///
/// One that is `in_place` stands in memory as elements: a `weight_view`, which products read as it lies. Any other one restores its
/// weights while they are read: a product asks for neighbouring weights of a row that lie between two multiples of `granule`, mostly for
/// all of them, and gets floats. Kernels of every backend do the rest, so that this is all there is to a format of weights. `read` does
/// not throw, and is fast where no branch depends on what it reads.
template <class Operand>
concept operand = std::is_trivially_copyable_v<Operand> &&
    requires(Operand const& w, float* to, checks::check_arrays const& check, checks::list_arrays const& list) {
  typename Operand::element;  // of the layer
  { Operand::in_place } -> std::convertible_to<bool>;
  { Operand::granule } -> std::convertible_to<int>;         // 1, 2, 4, 8, 16 or 32
  { w.read(0, 0, 0, 1, to) } -> std::same_as<void>;         // expert, row, column, count: to[0] to to[count - 1]
  { w.from(1) } -> std::same_as<Operand>;                   // without the experts below that one
  { w.name_arrays(check, 1, 1, 1) } -> std::same_as<void>;  // experts, rows, columns: see core/checks.hpp
  { w.name_arrays(list, 1, 1, 1) } -> std::same_as<void>;
};

/// What every expert adds to a matrix: `add(expert, row, column, count, to)` adds it to the weights that stand in `to`. One that has to look
/// for what stands there may have `find(expert, row, column)` and `add(found, count, to)`, too.
template <class Delta>
concept delta = std::is_trivially_copyable_v<Delta> &&
    requires(Delta const& d, float* to, checks::check_arrays const& check) {
  { Delta::granule } -> std::convertible_to<int>;
  { d.add(0, 0, 0, 1, to) } -> std::same_as<void>;
  { d.from(1) } -> std::same_as<Delta>;
  { d.name_arrays(check, 1, 1, 1) } -> std::same_as<void>;
};

/// One matrix for all experts, and what each adds to it: residuals, low rank by language, adapters.
template <operand Base, delta Change>
struct base_plus {
  using element = typename Base::element;
  static constexpr bool in_place = false;
  static constexpr int granule = Base::granule < Change::granule ? Base::granule : Change::granule;

  Base base = {};  ///< one matrix
  Change change = {};

  SWITCHYARD_HD void read(int expert, int row, int column, int count, float* to) const {
    if constexpr (requires { change.find(expert, row, column); }) {
      // Found before the base is read: on a GPU both at once take more registers.
      auto const place = change.find(expert, row, column);
      base.read(0, row, column, count, to);
      change.add(place, count, to);
    } else {
      base.read(0, row, column, count, to);
      change.add(expert, row, column, count, to);
    }
  }
  SWITCHYARD_HD constexpr base_plus from(int expert) const { return {base, change.from(expert)}; }
  /// A base of one product for a base of another: see `check_projection`.
  template <operand Other>
  requires(!std::is_same_v<Other, Base> && std::is_convertible_v<Base, Other>) SWITCHYARD_HD constexpr
  operator base_plus<Other, Change>() const {
    return {base, change};
  }
  template <class Arrays>
  void name_arrays(Arrays const& arrays, int experts, int rows, int columns) const {
    base.name_arrays(arrays.of("base", "[rows, columns], one matrix for all experts"), 1, rows, columns);
    change.name_arrays(arrays.of("change"), experts, rows, columns);
  }
};

/// Whether all experts read one matrix, and something of their own beside it: products on the CPU then read that matrix once for all.
template <class Operand>
inline constexpr bool shares_base = false;
template <class Base, class Change>
inline constexpr bool shares_base<base_plus<Base, Change>> = true;

/// The matrix that all experts read, and of any other operand itself.
template <class Operand>
constexpr Operand const& base_of(Operand const& w) {
  return w;
}
template <class Base, class Change>
constexpr Base const& base_of(base_plus<Base, Change> const& w) {
  return w.base;
}

/// Whether that is a sparse change of a matrix that stands in memory: products of few tokens on the CPU multiply the two apart. Such a
/// change says `static constexpr bool sparse = true`.
template <class Operand>
inline constexpr bool has_sparse_change = false;
template <class Base, class Change>
requires(Change::sparse) inline constexpr bool has_sparse_change<base_plus<Base, Change>> = Base::in_place;

static_assert(operand<weight_view<float>>);

/// Whether a cache of experts can keep such matrices in its pieces. One that is restored says how: `bytes_of(rows, columns)` bytes are a matrix of one
/// expert, `copy_expert(expert, to)` puts them somewhere, and `in_pieces(first, stride, rows, columns)` reads those of pieces that stand
/// `stride` bytes apart. `storage` is the name of the format.
template <class Operand>
inline constexpr bool fits_pieces = Operand::in_place || requires {
  Operand::bytes_of(1, 1);
};

/// The operand as kernels take it: a dense one does not know its product there, so that both share their kernels.
template <class Operand>
constexpr Operand as_operand(Operand const& w) {
  return w;
}
template <class T, projection Role>
constexpr weight_view<T> as_operand(weight_view<T, Role> const& w) {
  return {w.data, w.expert_stride, w.row_stride, w.column_stride};
}
template <class Base, class Change>
constexpr auto as_operand(base_plus<Base, Change> const& w) {
  return base_plus<decltype(as_operand(w.base)), Change>{as_operand(w.base), w.change};
}
template <class T, projection Role>
constexpr bias_view<T> as_operand(bias_view<T, Role> const& b) {
  return {b.data, b.expert_stride, b.stride};
}

}  // namespace switchyard
