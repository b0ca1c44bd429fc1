#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/offload/store.hpp>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>

namespace switchyard::offload {

struct free_blocks {
  void operator()(std::byte* memory) const { std::free(memory); }
};
/// Memory that a store can read into: it begins at a multiple of `block_bytes`.
using block_memory = std::unique_ptr<std::byte[], free_blocks>;

/// Takes whole blocks, at least `bytes` bytes, on pages of 2 MiB where there are so many and the system has them: a read past the page cache
/// pins every page that it writes to, which takes longer than the bytes themselves for pages of 4 KiB. Throws where there is no memory.
inline block_memory take_blocks(std::int64_t bytes) {
  constexpr std::int64_t page = std::int64_t{2} << 20;
  std::int64_t const whole = place_bytes(bytes > 0 ? bytes : 1), alignment = whole < page ? block_bytes : page;
  void* memory = nullptr;
  if (::posix_memalign(&memory, static_cast<std::size_t>(alignment), static_cast<std::size_t>(whole)) != 0) {
    memory = nullptr;
  }
  if (memory == nullptr) fail("offload, memory", std::to_string(whole) + " bytes", "none: there are not so many");
#if defined(__linux__)
  if (alignment == page) ::madvise(memory, static_cast<std::size_t>(whole), MADV_HUGEPAGE);
#endif
  return block_memory(static_cast<std::byte*>(memory));
}

}  // namespace switchyard::offload
