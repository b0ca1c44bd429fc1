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

TEST_CASE("exponentials of many values are those of each, and 0 below the limit", "[core]") {
  float const infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  float values[11] = {-infinity, -1e4f, -87.5f, -3.25f, -0.0f, nan, 0.5f, 17.0f, 88.0f, 1e4f, infinity};
  float each[11];
  for (int i = 0; i < 11; ++i) each[i] = values[i] < -87.0f ? 0.0f : exponential(values[i]);
  switchyard::exponentials(values);
  for (int i = 0; i < 11; ++i) {
    INFO(i);
    CHECK(((values[i] == each[i]) || (std::isnan(values[i]) && std::isnan(each[i]))));
  }
}
