// Compiled with -ffast-math, as a consumer may: the compiler then takes no number for a NaN or an infinity.
#include <switchyard/core/finite.hpp>

#include <bit>
#include <cstdint>

#include "catch.hpp"

namespace {

/// Whether the float of these bits is finite. The compiler does not see the bits.
bool finite(std::uint32_t bits) {
  std::uint32_t volatile hidden = bits;
  return switchyard::is_finite(std::bit_cast<float>(std::uint32_t{hidden}));
}

}  // namespace

TEST_CASE("NaN and infinities are not finite, also under -ffast-math", "[core]") {
  for (std::uint32_t sign : {0u, 0x80000000u}) {
    CAPTURE(sign);
    CHECK_FALSE(finite(sign | 0x7f800000u));  // infinity
    CHECK_FALSE(finite(sign | 0x7f800001u));  // the smallest signalling NaN
    CHECK_FALSE(finite(sign | 0x7fc00000u));  // the usual quiet NaN
    CHECK_FALSE(finite(sign | 0x7fffffffu));
  }
}

TEST_CASE("all other numbers are finite", "[core]") {
  for (std::uint32_t sign : {0u, 0x80000000u}) {
    CAPTURE(sign);
    CHECK(finite(sign));                // zero
    CHECK(finite(sign | 0x00000001u));  // the smallest number
    CHECK(finite(sign | 0x3f800000u));  // one
    CHECK(finite(sign | 0x7f7fffffu));  // the largest number
  }
  static_assert(switchyard::is_finite(1.0f));
}

TEST_CASE("every exponent but the last is one of finite numbers", "[core]") {
  for (std::uint32_t exponent = 0; exponent < 256; ++exponent) {
    CAPTURE(exponent);
    CHECK(finite(exponent << 23 | 0x00012345u) == (exponent < 255));
  }
}
