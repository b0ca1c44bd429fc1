#include <switchyard/core/error_function.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "catch.hpp"

namespace sy = switchyard;

TEST_CASE("the error function is that of doubles within two units of the last place", "[core]") {
  int wrong = 0;
  for (std::uint32_t bits = 0x04000000; bits < 0x41200000; bits += 9973) {  // from 1.5e-36 to 10
    float x;
    std::memcpy(&x, &bits, sizeof x);
    double const expected = std::erf(double(x));
    double const unit = std::ldexp(1.0, std::max(std::ilogb(expected) - 23, -149));
    if (std::abs(sy::error_function(x) - expected) > 2.0 * unit) ++wrong;
    if (sy::error_function(-x) != -sy::error_function(x)) ++wrong;
  }
  CHECK(wrong == 0);
}

TEST_CASE("the error function of what is large is one, of zero a zero of its sign, and a NaN goes through", "[core]") {
  float const infinity = std::numeric_limits<float>::infinity();
  for (float x : {4.0f, 10.0f, 1e10f, std::numeric_limits<float>::max(), infinity}) {
    CAPTURE(x);
    CHECK(sy::error_function(x) == 1.0f);
    CHECK(sy::error_function(-x) == -1.0f);
  }
  CHECK(sy::error_function(0.0f) == 0.0f);
  CHECK(std::signbit(sy::error_function(-0.0f)));
  CHECK(std::isnan(sy::error_function(std::numeric_limits<float>::quiet_NaN())));
}
