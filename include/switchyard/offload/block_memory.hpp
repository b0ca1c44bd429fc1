#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/offload/store.hpp>

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

/// Takes whole blocks, at least `bytes` bytes. Throws where there are none.
inline block_memory take_blocks(std::int64_t bytes) {
  std::int64_t const whole = place_bytes(bytes > 0 ? bytes : 1);
  void* const memory = std::aligned_alloc(static_cast<std::size_t>(block_bytes), static_cast<std::size_t>(whole));
  if (memory == nullptr) fail("offload, memory", std::to_string(whole) + " bytes", "none: there are not so many");
  return block_memory(static_cast<std::byte*>(memory));
}

}  // namespace switchyard::offload
