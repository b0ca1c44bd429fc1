#pragma once

#include <switchyard/core/host_device.hpp>

#include <cstdint>

/// Small numbers that stand for weights and scales, widened to the floats that they are.
namespace switchyard::quantised {

/// E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 for the codes 0 to 7; bit 3 is the sign, and code 8 is -0.
SWITCHYARD_HD constexpr float e2m1(std::uint32_t code) {
  std::uint32_t const size = code & 7u;
  std::uint32_t const usual = ((size >> 1) + 126u) << 23 | (size & 1u) << 22;
  std::uint32_t const bits = size == 0u ? 0u : size == 1u ? 0x3f000000u : usual;
  return __builtin_bit_cast(float, bits | (code & 8u) << 28);
}
/// The same with code 8 as +0, as some formats have it.
SWITCHYARD_HD constexpr float e2m1_without_minus_zero(std::uint32_t code) { return e2m1(code == 8u ? 0u : code); }

/// E4M3: a sign, 4 bits of an exponent of bias 7, 3 of a mantissa; subnormal numbers are multiples of 2^-9. There is no infinity; 0x7f and 0xff are
/// NaN.
SWITCHYARD_HD constexpr float e4m3(std::uint32_t code) {
  std::uint32_t const sign = (code & 0x80u) << 24, magnitude = code & 0x7fu;
  if (magnitude == 0x7fu) return __builtin_bit_cast(float, 0x7fc00000u);
  std::uint32_t const small =
      __builtin_bit_cast(std::uint32_t, static_cast<float>(static_cast<int>(magnitude)) * 0x1p-9f);
  return __builtin_bit_cast(float, sign | (magnitude < 8u ? small : (magnitude << 20) + (120u << 23)));
}

/// E8M0: 2^(code - 127); 255 is NaN.
SWITCHYARD_HD constexpr float e8m0(std::uint32_t code) {
  return code == 255u ? __builtin_bit_cast(float, 0x7fc00000u)
                      : __builtin_bit_cast(float, code == 0u ? 0x00400000u : code << 23);
}

static_assert(e2m1(7) == 6.0f && e2m1(9) == -0.5f && e4m3(0x7e) == 448.0f && e4m3(0x81) == -0x1p-9f &&
              e4m3(0x08) == 0x1p-6f && e8m0(127) == 1.0f && e8m0(0) == 0x1p-127f);

}  // namespace switchyard::quantised
