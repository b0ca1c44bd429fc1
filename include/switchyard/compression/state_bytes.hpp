#pragma once

#include <switchyard/core/error.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

/// What a computation that was stopped writes down, so that it goes on later.
namespace switchyard::compression {

/// FNV-1a of some bytes, to tell whether they are damaged.
/// Source: Fowler, Noll and Vo, the 64-bit FNV-1a hash.
inline std::uint64_t checksum(std::span<std::byte const> bytes) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (std::byte b : bytes) hash = (hash ^ static_cast<std::uint64_t>(b)) * 0x100000001b3u;
  return hash;
}

/// One number. Structures may have bytes that belong to no member, and are put down member by member.
template <class T>
inline constexpr bool is_one_number = std::is_arithmetic_v<T> || std::is_enum_v<T>;

/// Puts numbers and vectors of numbers one after the other, as they stand in memory.
class state_writer {
 public:
  /// Makes room for so many bytes, so that they need not be moved.
  void reserve(std::size_t bytes) { bytes_.reserve(bytes + sizeof(std::uint64_t)); }

  template <class T>
  requires(is_one_number<T>) state_writer& operator<<(T const& value) {
    auto const* const from = reinterpret_cast<std::byte const*>(&value);
    bytes_.insert(bytes_.end(), from, from + sizeof(T));
    return *this;
  }
  /// Structures that are elements have no bytes but those of their members.
  template <class T>
  state_writer& operator<<(std::vector<T> const& values) {
    static_assert(std::is_trivially_copyable_v<T>);
    *this << static_cast<std::uint64_t>(values.size());
    auto const* const from = reinterpret_cast<std::byte const*>(values.data());
    bytes_.insert(bytes_.end(), from, from + values.size() * sizeof(T));
    return *this;
  }
  /// The bytes, with a checksum behind them.
  std::vector<std::byte> finish() && {
    *this << checksum(bytes_);
    return std::move(bytes_);
  }

 private:
  std::vector<std::byte> bytes_;
};

/// Takes apart what `state_writer` has put together. Throws `error` where bytes are damaged or missing.
class state_reader {
 public:
  explicit state_reader(std::span<std::byte const> bytes) : bytes_(bytes) {
    if (bytes.size() < sizeof(std::uint64_t)) fail_damaged();
    bytes_ = bytes.first(bytes.size() - sizeof(std::uint64_t));
    std::uint64_t expected;
    __builtin_memcpy(&expected, bytes.data() + bytes_.size(), sizeof expected);
    if (checksum(bytes_) != expected) fail_damaged();
  }

  template <class T>
  requires(is_one_number<T>) state_reader& operator>>(T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      std::byte const read = *take(1);
      if (read > std::byte{1}) fail_damaged();
      value = read == std::byte{1};
    } else {
      __builtin_memcpy(&value, take(sizeof(T)), sizeof(T));
    }
    return *this;
  }
  template <class T>
  state_reader& operator>>(std::vector<T>& values) {
    std::uint64_t count;
    *this >> count;
    if (count > bytes_.size() / sizeof(T)) fail_damaged();
    values.resize(static_cast<std::size_t>(count));
    std::byte const* const from = take(values.size() * sizeof(T));
    if (!values.empty()) __builtin_memcpy(values.data(), from, values.size() * sizeof(T));
    return *this;
  }
  void finish() const {
    if (!bytes_.empty()) fail_damaged();
  }

 private:
  [[noreturn]] static void fail_damaged() {
    fail("compression, saved state", "the bytes that were saved", "fewer or others");
  }
  std::byte const* take(std::size_t count) {
    if (count > bytes_.size()) fail_damaged();
    std::byte const* const from = bytes_.data();
    bytes_ = bytes_.subspan(count);
    return from;
  }

  std::span<std::byte const> bytes_;
};

}  // namespace switchyard::compression
