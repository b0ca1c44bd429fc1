#pragma once

#include <switchyard/core/host_device.hpp>

#include <cstdint>

namespace switchyard {

/// Two-byte IEEE 754 binary16. Storage only; arithmetic is done in float.
/// Bit-compatible with the CUDA and PyTorch types of the same name.
struct half {
  std::uint16_t bits = 0;

  half() = default;

  /// Rounds to nearest, ties to even. Values beyond 65504 become infinite, a NaN stays a (quiet) NaN.
  SWITCHYARD_HD constexpr explicit half(float value) {
    std::uint32_t const word = __builtin_bit_cast(std::uint32_t, value);
    auto const sign = static_cast<std::uint16_t>((word >> 16) & 0x8000u);
    std::uint32_t const magnitude = word & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
      bits = static_cast<std::uint16_t>(sign | 0x7e00u);
    } else if (magnitude >= 0x477ff000u) {  // rounds to 65536 or more
      bits = static_cast<std::uint16_t>(sign | 0x7c00u);
    } else if (magnitude < 0x38800000u) {  // subnormal: let the float adder round at 2^-24
      std::uint32_t const shifted = __builtin_bit_cast(std::uint32_t, __builtin_bit_cast(float, magnitude) + 0.5f);
      bits = static_cast<std::uint16_t>(sign | (shifted - 0x3f000000u));
    } else {
      std::uint32_t const rounded = magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u);
      bits = static_cast<std::uint16_t>(sign | (rounded >> 13));
    }
  }

  SWITCHYARD_HD constexpr explicit operator float() const {
    std::uint32_t const sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
    // A subnormal one is a whole number of 2^-24. No float on the way is subnormal, for a process may flush those.
    std::uint32_t const small =
        __builtin_bit_cast(std::uint32_t, static_cast<float>(static_cast<int>(magnitude)) * 0x1p-24f);
    // 112 is the distance of the exponents' biases, 15 and 127; infinity and NaN have the last exponent in both.
    std::uint32_t const usual = (magnitude << 13) + (magnitude >= 0x7c00u ? 224u << 23 : 112u << 23);
    return __builtin_bit_cast(float, sign | (magnitude < 0x0400u ? small : usual));
  }

  friend constexpr bool operator==(half, half) = default;
};

static_assert(sizeof(half) == 2);

}  // namespace switchyard
