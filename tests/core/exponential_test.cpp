#include <switchyard/core/exponential.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

#include "catch.hpp"

using switchyard::exponential;

TEST_CASE("the exponential is that of double to two units of the last place", "[core]") {
  double worst = 0.0;
  for (float x = -87.0f; x < 88.3f; x += 0.0137f) {
    double const right = std::exp(double{x});
    worst = std::max(worst, std::abs(exponential(x) - right) / right);
  }
  CHECK(worst < 2.4e-7);
  CHECK(exponential(0.0f) == 1.0f);
}

TEST_CASE("the exponential of large numbers is infinite or next to nothing, and that of a NaN is one", "[core]") {
  float const infinity = std::numeric_limits<float>::infinity();
  for (float x : {89.0f, 1e4f, infinity}) CHECK(exponential(x) == infinity);
  for (float x : {-88.0f, -1e4f, -infinity}) {
    CHECK(exponential(x) >= 0.0f);
    CHECK(exponential(x) < 2e-38f);
  }
  CHECK(std::isnan(exponential(std::numeric_limits<float>::quiet_NaN())));
}
