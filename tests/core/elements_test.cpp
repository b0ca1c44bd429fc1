#include <switchyard/core/element.hpp>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "catch.hpp"

namespace sy = switchyard;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

std::uint32_t bits(float value) { return std::bit_cast<std::uint32_t>(value); }
std::uint16_t as_bfloat16(float value) { return sy::bfloat16(value).bits; }
std::uint16_t as_half(float value) { return sy::half(value).bits; }

template <class T>
T from_bits(int word) {
  T value;
  value.bits = static_cast<std::uint16_t>(word);
  return value;
}

/// The value of a half, from the definition of the format.
double half_value(int word) {
  int const exponent = (word >> 10) & 31, fraction = word & 1023;
  double const magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return word & 0x8000 ? -magnitude : magnitude;
}

bool is_half_nan(int word) { return (word & 0x7fff) > 0x7c00; }

}  // namespace

TEST_CASE("bfloat16 rounds to nearest and ties to even", "[core]") {
  CHECK(as_bfloat16(1.0f) == 0x3f80);
  CHECK(as_bfloat16(-2.0f) == 0xc000);
  CHECK(as_bfloat16(std::bit_cast<float>(0x3f808000u)) == 0x3f80);  // half way, even below
  CHECK(as_bfloat16(std::bit_cast<float>(0x3f818000u)) == 0x3f82);  // half way, even above
  CHECK(as_bfloat16(std::bit_cast<float>(0x3f808001u)) == 0x3f81);
  CHECK(as_bfloat16(std::bit_cast<float>(0x3f817fffu)) == 0x3f81);
  CHECK(as_bfloat16(3.14159265f) == 0x4049);
}

TEST_CASE("bfloat16 keeps zeros, subnormals, infinities and NaN", "[core]") {
  CHECK(as_bfloat16(0.0f) == 0x0000);
  CHECK(as_bfloat16(-0.0f) == 0x8000);
  CHECK(as_bfloat16(infinity) == 0x7f80);
  CHECK(as_bfloat16(-infinity) == 0xff80);
  CHECK(as_bfloat16(std::numeric_limits<float>::max()) == 0x7f80);  // nearer to 2^128 than to the last number
  CHECK(as_bfloat16(std::bit_cast<float>(0x7f7f7fffu)) == 0x7f7f);
  CHECK(as_bfloat16(std::bit_cast<float>(0x00010000u)) == 0x0001);
  CHECK(as_bfloat16(std::bit_cast<float>(0x00008000u)) == 0x0000);
  CHECK(as_bfloat16(std::bit_cast<float>(0x00008001u)) == 0x0001);
  CHECK(std::isnan(static_cast<float>(sy::bfloat16(std::bit_cast<float>(0x7f800001u)))));  // the rest is cut off
  CHECK(std::isnan(static_cast<float>(sy::bfloat16(std::bit_cast<float>(0xffffffffu)))));
}

TEST_CASE("every bfloat16 comes back from float as it was", "[core]") {
  int wrong = 0;
  for (int word = 0; word < 65536; ++word) {
    float const value = static_cast<float>(from_bits<sy::bfloat16>(word));
    if (bits(value) != static_cast<std::uint32_t>(word) << 16) ++wrong;
    if (!std::isnan(value) && as_bfloat16(value) != word) ++wrong;
  }
  CHECK(wrong == 0);
}

TEST_CASE("half rounds to nearest and ties to even", "[core]") {
  CHECK(as_half(1.0f) == 0x3c00);
  CHECK(as_half(-2.0f) == 0xc000);
  CHECK(as_half(1.0f + 0x1p-11f) == 0x3c00);  // half way, even below
  CHECK(as_half(1.0f + 0x3p-11f) == 0x3c02);  // half way, even above
  CHECK(as_half(1.0f + 0x1p-11f + 0x1p-20f) == 0x3c01);
  CHECK(as_half(2.0f - 0x1p-12f) == 0x4000);  // carries into the exponent
  CHECK(as_half(3.14159265f) == 0x4248);
}

TEST_CASE("half keeps zeros, infinities and NaN, and overflows to infinity", "[core]") {
  CHECK(as_half(0.0f) == 0x0000);
  CHECK(as_half(-0.0f) == 0x8000);
  CHECK(as_half(65504.0f) == 0x7bff);
  CHECK(as_half(65519.996f) == 0x7bff);
  CHECK(as_half(65520.0f) == 0x7c00);
  CHECK(as_half(-1e30f) == 0xfc00);
  CHECK(as_half(infinity) == 0x7c00);
  CHECK(as_half(-infinity) == 0xfc00);
  CHECK(is_half_nan(as_half(std::bit_cast<float>(0x7f800001u))));
  CHECK(as_half(-std::numeric_limits<float>::quiet_NaN()) == 0xfe00);
}

TEST_CASE("half has subnormals, and rounds to them", "[core]") {
  CHECK(as_half(0x1p-14f) == 0x0400);
  CHECK(as_half(0x1p-15f) == 0x0200);
  CHECK(as_half(0x1p-24f) == 0x0001);
  CHECK(as_half(-0x1p-24f) == 0x8001);
  CHECK(as_half(0x1p-25f) == 0x0000);  // half way, even below
  CHECK(as_half(0x1p-25f + 0x1p-40f) == 0x0001);
  CHECK(as_half(0x3p-25f) == 0x0002);             // half way, even above
  CHECK(as_half(0x1p-14f - 0x1p-25f) == 0x0400);  // up to the first normal number
  CHECK(as_half(0x1p-149f) == 0x0000);
}

TEST_CASE("every half has its value as a float, and comes back from it as it was", "[core]") {
  int wrong = 0;
  for (int word = 0; word < 65536; ++word) {
    float const value = static_cast<float>(from_bits<sy::half>(word));
    if (is_half_nan(word)) {
      wrong += !std::isnan(value);
    } else if ((word & 0x7fff) == 0x7c00) {
      wrong += value != (word & 0x8000 ? -infinity : infinity);
    } else {
      wrong += double(value) != half_value(word) || std::signbit(value) != ((word & 0x8000) != 0);
    }
    if (!std::isnan(value)) wrong += as_half(value) != word;
  }
  CHECK(wrong == 0);
}

TEST_CASE("a float becomes the nearest half", "[core]") {
  int wrong = 0;
  for (int word = 0; word < 0x7bff; ++word) {  // between each half and the next
    double const low = half_value(word), high = half_value(word + 1), middle = (low + high) / 2;
    int const even = word % 2 == 0 ? word : word + 1;
    wrong += as_half(static_cast<float>(middle)) != even;
    wrong += as_half(std::nextafter(static_cast<float>(middle), 0.0f)) != word;
    wrong += as_half(std::nextafter(static_cast<float>(middle), infinity)) != word + 1;
  }
  CHECK(wrong == 0);
}

TEST_CASE("two-byte elements convert at compile time and compare by bits", "[core]") {
  static_assert(static_cast<float>(sy::bfloat16(1.5f)) == 1.5f);
  static_assert(static_cast<float>(sy::half(1.5f)) == 1.5f);
  static_assert(sy::half(2.0f) == sy::half(2.0f));
  static_assert(!(sy::bfloat16(0.0f) == sy::bfloat16(-0.0f)));
  static_assert(sy::bfloat16{}.bits == 0 && sy::half{}.bits == 0);
  SUCCEED();
}

TEST_CASE("elements are float, bfloat16 and half", "[core]") {
  static_assert(sy::element<float> && sy::element<sy::bfloat16> && sy::element<sy::half>);
  static_assert(!sy::element<double> && !sy::element<int> && !sy::element<float const>);
  CHECK(sy::element_name<float> == "float");
  CHECK(sy::element_name<sy::bfloat16> == "bfloat16");
  CHECK(sy::element_name<sy::half> == "half");
}
