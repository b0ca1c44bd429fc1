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

 public:
  static constexpr int granule = least({Formats::granule...});
  int which = -1;  ///< number in the list; -1: none
  int rows = 0, columns = 0;
  alignas(8) unsigned char matrix[most({sizeof(Formats)...})] = {};

  any_of() = default;
  template <class Format>
  requires(number_of<Format>() >= 0) SWITCHYARD_HD any_of(Format const& of)
      : which(number_of<Format>()), rows(of.rows), columns(of.columns) {
    static_assert(std::is_trivially_copyable_v<Format>);
    std::memcpy(matrix, &of, sizeof of);
  }

  /// Calls `body(format)` with the matrix as what it is, and gives what that returns.
  template <class Result, class Body>
  SWITCHYARD_HD Result visit(Body const& body) const {
    return visit_from<Result, 0, Formats...>(body);
  }
  int whole() const {
    return which < 0 ? 1 : visit<int>([](auto const& of) { return whole_of(of); });
  }
  SWITCHYARD_HD void read(int expert, int row, int column, int count, float* to) const {
    visit<void>([&](auto const& of) { of.read(expert, row, column, count, to); });
  }
  SWITCHYARD_HD any_of from(int expert) const {
    return visit<any_of>([&](auto const& of) { return any_of(of.from(expert)); });
  }
  template <class Arrays>
  void name_arrays(Arrays const& arrays, int experts) const {
    if (which < 0) return arrays.array("matrix", static_cast<unsigned char const*>(nullptr), 1, "one of the formats");
    visit<void>([&](auto const& of) { of.name_arrays(arrays, experts); });
  }

 private:
  template <class Format>
  static constexpr int whole_of(Format const&) {
    return Format::whole;
  }
  template <class Result, int Number, class Format, class... Others, class Body>
  SWITCHYARD_HD Result visit_from(Body const& body) const {
    if constexpr (sizeof...(Others) > 0) {
      if (which != Number) return visit_from<Result, Number + 1, Others...>(body);
    }
    return body(*reinterpret_cast<Format const*>(matrix));
  }
};

}  // namespace switchyard::quantised
