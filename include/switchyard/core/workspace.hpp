#pragma once

#include <switchyard/core/error.hpp>

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

  /// Bytes of the pieces taken, from the cache line on where the first one begins.
  constexpr std::int64_t taken() const { return static_cast<std::int64_t>(used_); }

  /// Bytes that the caller must supply at an address that is a multiple of `workspace_alignment`.
  constexpr std::size_t bytes() const { return used_ == 0 ? 0 : used_ + line - workspace_alignment; }

 private:
  static constexpr std::size_t line = 64;
  std::byte* first_ = nullptr;
  std::size_t used_ = 0;
};

/// Bytes that temporaries `Memory(carver&, tokens)` take.
template <class Memory>
constexpr std::size_t bytes_of_memory(std::int64_t tokens) {
  carver measure;
  Memory const all(measure, tokens);
  static_cast<void>(all);
  return measure.bytes();
}

/// Refuses a second call that is given the workspace of one that still runs, where NDEBUG is not defined. The mark stands in the
/// workspace itself, which holds anything before the call: a tool that looks for uninitialised memory may name the comparison.
/// The types have names of their own, for a program may have files of both kinds.
#if defined(NDEBUG)
struct unmarked_use {
  explicit unmarked_use(std::uint64_t*) {}
};
using workspace_use = unmarked_use;
#else
class marked_use {
 public:
  explicit marked_use(std::uint64_t* mark) : mark_(mark) {
    if (__atomic_exchange_n(mark_, in_use, __ATOMIC_ACQ_REL) != in_use) return;
    fail("layer::forward, workspace", "memory of this call alone", "that of another one, which still runs");
  }
  marked_use(marked_use const&) = delete;
  ~marked_use() { __atomic_store_n(mark_, std::uint64_t{0}, __ATOMIC_RELEASE); }

 private:
  static constexpr std::uint64_t in_use = 0x5377697463687964;
  std::uint64_t* mark_;
};
using workspace_use = marked_use;
#endif

}  // namespace switchyard
