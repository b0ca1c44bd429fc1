#pragma once

#include <switchyard/core/host_device.hpp>

#include <cstdint>

namespace switchyard {

/// Whether a number is neither NaN nor infinite. Looks at the bits, whatever a compiler takes for granted.
SWITCHYARD_HD constexpr bool is_finite(float value) {
  return (__builtin_bit_cast(std::uint32_t, value) & 0x7f800000u) != 0x7f800000u;
}

}  // namespace switchyard
