#pragma once

#include <switchyard/core/host_device.hpp>

#include <cstdint>

namespace switchyard {

/// condition ? a : b by operations on bits, on the host. GCC makes jumps of the operator where a loop is to become vectors, and then keeps
/// the loop as it is.
SWITCHYARD_HD inline float choose(bool condition, float a, float b) {
#if defined(__CUDA_ARCH__)
  return condition ? a : b;
#else
  std::uint32_t const mask = 0u - static_cast<std::uint32_t>(condition);
  return __builtin_bit_cast(
      float, (__builtin_bit_cast(std::uint32_t, a) & mask) | (__builtin_bit_cast(std::uint32_t, b) & ~mask));
#endif
}

}  // namespace switchyard
