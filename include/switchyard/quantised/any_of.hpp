#pragma once

#include <switchyard/core/host_device.hpp>

#include <cstddef>
#include <cstring>
#include <initializer_list>
#include <type_traits>

namespace switchyard::quantised {

/// A matrix in one of several formats, which one is known when the program runs: projections of one expert may then differ, as they do in
/// GGUF files. Each read asks which it is.
template <class... Formats>
struct any_of {
  static constexpr char const* name = "any_of";

 private:
  static constexpr int least(std::initializer_list<int> numbers) {
    int result = 32;
    for (int number : numbers) result = number < result ? number : result;
    return result;
  }
  static constexpr std::size_t most(std::initializer_list<std::size_t> numbers) {
    std::size_t result = 0;
    for (std::size_t number : numbers) result = number > result ? number : result;
    return result;
  }
  template <class Format>
  static constexpr int number_of() {
    int number = 0, found = -1;
    ((std::is_same_v<Format, Formats> ? void(found = number++) : void(number++)), ...);
    return found;
  }
  template <class Format>
  static constexpr int index_of = number_of<Format>();  // a value, which a GPU's compiler takes from the host

 public:
  static constexpr int granule = least({Formats::granule...});
  int which = -1;  ///< number in the list; -1: none
  int rows = 0, columns = 0;
  alignas(8) unsigned char matrix[most({sizeof(Formats)...})] = {};

  any_of() = default;
  template <class Format>
  requires(index_of<Format> >= 0) SWITCHYARD_HD any_of(Format const& of)
      : which(index_of<Format>), rows(of.rows), columns(of.columns) {
    static_assert(std::is_trivially_copyable_v<Format>);
    std::memcpy(matrix, &of, sizeof of);
  }

  /// Of how many columns a row is a multiple.
  int whole() const {
    int result = 1;
    visit([&](auto const& of) { result = of.whole; });
    return result;
  }
  /// Of how many rows a matrix is a multiple.
  int whole_rows() const {
    int result = 1;
    visit([&](auto const& of) {
      if constexpr (requires { of.whole_rows; }) result = of.whole_rows;
    });
    return result;
  }
  void check_strides(char const* what, int experts) const {
    visit([&](auto const& of) {
      if constexpr (requires { of.check_strides(what, experts); }) of.check_strides(what, experts);
    });
  }
  SWITCHYARD_HD void read(int expert, int row, int column, int count, float* to) const {
    read_as<0, Formats...>(expert, row, column, count, to);
  }
  SWITCHYARD_HD any_of from(int expert) const { return from_as<0, Formats...>(expert); }
  /// The matrix where it has that format, else null.
  template <class Format>
  Format const* get_if() const {
    return which == index_of<Format> ? &as<Format>() : nullptr;
  }
  template <class Arrays>
  void name_arrays(Arrays const& arrays, int experts) const {
    if (which < 0) arrays.array("matrix", static_cast<unsigned char const*>(nullptr), 1, "one of the formats");
    visit([&](auto const& of) { of.name_arrays(arrays, experts); });
  }
  /// The matrix, where it is of this format.
  template <class Format>
  SWITCHYARD_HD Format const& as() const {
    return *reinterpret_cast<Format const*>(matrix);
  }

 private:
  template <class Body>
  void visit(Body const& body) const {
    int number = 0;
    ((number++ == which ? body(as<Formats>()) : void()), ...);
  }
  // Without lambdas, which a GPU's compiler takes for functions of the host.
  template <int Number, class Format, class... Others>
  SWITCHYARD_HD void read_as(int expert, int row, int column, int count, float* to) const {
    if constexpr (sizeof...(Others) > 0) {
      if (which != Number) return read_as<Number + 1, Others...>(expert, row, column, count, to);
    }
    as<Format>().read(expert, row, column, count, to);
  }
  template <int Number, class Format, class... Others>
  SWITCHYARD_HD any_of from_as(int expert) const {
    if constexpr (sizeof...(Others) > 0) {
      if (which != Number) return from_as<Number + 1, Others...>(expert);
    }
    return any_of(as<Format>().from(expert));
  }
};

}  // namespace switchyard::quantised
