#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "support/any_layer.hpp"

/// The memory of one call: between guards, and where the layer can reach it.
namespace support {

/// An array between two guards, in a pattern that is a NaN as a float. `past` bytes beyond a multiple of 64.
class guarded {
 public:
  explicit guarded(std::size_t bytes, std::size_t past = 0) : bytes_(bytes), memory_(bytes + 64 + past + 2 * guard) {
    std::memset(memory_.data(), pattern, memory_.size());
    auto const address = reinterpret_cast<std::uintptr_t>(memory_.data());
    first_ = guard + (64 - (address + guard) % 64) % 64 + past;
  }
  std::byte* data() { return memory_.data() + first_; }
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data());
  }
  std::size_t size() const { return bytes_; }
  std::vector<std::byte>& with_guards() { return memory_; }
  bool guards_intact() const { return untouched(0, first_) && untouched(first_ + bytes_, memory_.size()); }
  bool untouched() const { return untouched(0, memory_.size()); }

  static constexpr int pattern = 0xff;

 private:
  static constexpr std::size_t guard = 64;

  bool untouched(std::size_t begin, std::size_t end) const {
    for (std::size_t i = begin; i < end; ++i) {
      if (memory_[i] != std::byte{pattern}) return false;
    }
    return true;
  }

  std::size_t bytes_, first_;
  std::vector<std::byte> memory_;
};

/// Where the buffers of one call are: the host's own, or copies in a memory space.
class placement {
 public:
  explicit placement(memory_space const& space) : space_(space) {}
  placement(placement const&) = delete;
  ~placement() {
    for (void* p : allocated_) space_.release(p);
  }

  /// What the layer only reads.
  template <class T>
  T const* place(T const* first, std::size_t bytes) {
    if (space_.allocate == nullptr || bytes == 0) return first;
    void* const copy = allocate(bytes);
    space_.copy_in(copy, first, bytes);
    return static_cast<T const*>(copy);
  }
  template <class T>
  T const* place(std::vector<T> const& values) {
    return place(values.data(), values.size() * sizeof(T));
  }

  /// What the layer may write: with its guards, as far past a multiple of 64 as on the host. Without `contents` only the
  /// guards are written, so that a tool can tell what the layer reads before it writes.
  std::byte* place(guarded& buffer, bool contents = true) {
    if (space_.allocate == nullptr) return buffer.data();
    std::vector<std::byte>& all = buffer.with_guards();
    std::size_t const begin = static_cast<std::size_t>(buffer.data() - all.data());
    std::byte* const copy =
        static_cast<std::byte*>(allocate(all.size() + 64)) + reinterpret_cast<std::uintptr_t>(all.data()) % 64;
    if (contents) {
      space_.copy_in(copy, all.data(), all.size());
    } else {
      space_.copy_in(copy, all.data(), begin);
      space_.copy_in(copy + begin + buffer.size(), buffer.data() + buffer.size(), all.size() - begin - buffer.size());
    }
    written_.push_back({&buffer, copy, contents});
    return copy + begin;
  }

  /// Brings back what the layer wrote.
  void fetch() {
    for (auto const& [buffer, copy, contents] : written_) {
      std::vector<std::byte>& all = buffer->with_guards();
      std::size_t const begin = static_cast<std::size_t>(buffer->data() - all.data()), end = begin + buffer->size();
      if (contents) {
        space_.copy_out(all.data(), copy, all.size());
      } else {
        space_.copy_out(all.data(), copy, begin);
        space_.copy_out(all.data() + end, copy + end, all.size() - end);
      }
    }
  }

 private:
  struct written_buffer {
    guarded* buffer;
    std::byte* copy;
    bool contents;
  };

  void* allocate(std::size_t bytes) {
    allocated_.push_back(space_.allocate(bytes));
    return allocated_.back();
  }

  memory_space space_;
  std::vector<void*> allocated_;
  std::vector<written_buffer> written_;
};

}  // namespace support
