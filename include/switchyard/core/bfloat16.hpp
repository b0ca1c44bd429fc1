#pragma once

#include <switchyard/core/host_device.hpp>

#include <cstdint>

namespace switchyard {

/// Two-byte brain float: the upper half of an IEEE single. Storage only; arithmetic is done in float.
/// Bit-compatible with the CUDA and PyTorch types of the same name.
struct bfloat16 {
  std::uint16_t bits = 0;

  bfloat16() = default;

  /// Rounds to nearest, ties to even. A NaN stays a (quiet) NaN.
  SWITCHYARD_HD constexpr explicit bfloat16(float value) {
    std::uint32_t const word = __builtin_bit_cast(std::uint32_t, value);
    bits = (word & 0x7fffffffu) > 0x7f800000u
               ? static_cast<std::uint16_t>((word >> 16) | 0x0040u)
               : static_cast<std::uint16_t>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
  }

  SWITCHYARD_HD constexpr explicit operator float() const {
    return __builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << 16);
  }

  friend constexpr bool operator==(bfloat16, bfloat16) = default;
};

static_assert(sizeof(bfloat16) == 2);

}  // namespace switchyard
