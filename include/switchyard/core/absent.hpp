#pragma once

namespace switchyard {

/// A member that a layer does not have. Setting it is a compile error with the sentence of `Why`: C++20 wants a literal there, so
/// a sentence is a struct beside the policy that owns it,
///
///   struct only_x_has_y {
///     template <class T>
///     static constexpr void refuse() { static_assert(sizeof(T) == 0, "switchyard: ..."); }
///   };
template <class Why>
struct absent {
  absent() = default;
  template <class T>
  constexpr absent(T const&) {
    Why::template refuse<T>();
  }
};

}  // namespace switchyard
