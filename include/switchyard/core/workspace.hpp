#pragma once

#include <cstddef>
#include <cstdint>

namespace switchyard {

/// What the start of a workspace has to be a multiple of, in bytes: what `new` and `malloc` give.
inline constexpr std::size_t workspace_alignment = 16;

/// Splits one buffer into named pieces, each on a cache line. Run on no memory it only measures, so that
/// `workspace_bytes` and `forward` share one list of pieces.
class carver {
 public:
  carver() = default;
  explicit carver(std::byte* first) : first_(first) {
    if (first_ == nullptr) return;
    auto const address = reinterpret_cast<std::uintptr_t>(first_);
    first_ += (line - address % line) % line;
  }

  /// Room for `count` objects of type T, or null while measuring.
  template <class T>
  constexpr T* take(std::int64_t count) {
    std::size_t const begin = used_;
    std::size_t const bytes = static_cast<std::size_t>(count) * sizeof(T);
    used_ += (bytes + line - 1) / line * line;
    return first_ == nullptr ? nullptr : reinterpret_cast<T*>(first_ + begin);
  }

  /// Bytes that the caller must supply at an address that is a multiple of `workspace_alignment`.
  constexpr std::size_t bytes() const { return used_ == 0 ? 0 : used_ + line - workspace_alignment; }

 private:
  static constexpr std::size_t line = 64;
  std::byte* first_ = nullptr;
  std::size_t used_ = 0;
};

}  // namespace switchyard
