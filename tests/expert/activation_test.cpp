#include <switchyard/expert/activation.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "catch.hpp"

namespace sy = switchyard;

namespace {

/// Relative to the value or, for values near zero, to the argument: activations cross zero.
bool close(float got, double expected, double argument) {
  return std::abs(got - expected) <= 1e-6 * std::max(std::abs(expected), std::abs(argument));
}

/// Compares over the range that matters, and the gated form with the plain one.
template <class Activation, class Function>
void check(Function expected) {
  int wrong = 0;
  for (int i = -4000; i <= 4000; ++i) {
    float const x = static_cast<float>(i) / 128.0f;
    if (!close(Activation::apply(x), expected(double(x)), x)) ++wrong;
    if (Activation::apply(x, 3.0f) != Activation::apply(x) * 3.0f) ++wrong;
  }
  CHECK(wrong == 0);
}

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

}  // namespace

TEST_CASE("activations are their formulas", "[expert]") {
  check<sy::relu>([](double x) { return std::max(x, 0.0); });
  check<sy::relu_squared>([](double x) { return x > 0 ? x * x : 0.0; });
  check<sy::gelu>([](double x) { return x * 0.5 * std::erfc(-x / std::numbers::sqrt2); });
  check<sy::gelu_tanh>([](double x) {
    return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
  });
  check<sy::silu>([](double x) { return x * sigmoid(x); });
}

TEST_CASE("activations of hand-computed arguments", "[expert]") {
  CHECK(sy::relu::apply(-2.0f) == 0.0f);
  CHECK(sy::relu_squared::apply(-3.0f) == 0.0f);
  CHECK(sy::relu_squared::apply(3.0f) == 9.0f);
  CHECK(sy::gelu::apply(1.0f) == Catch::Approx(0.841345).epsilon(1e-5));
  CHECK(sy::gelu_tanh::apply(1.0f) == Catch::Approx(0.841192).epsilon(1e-5));
  CHECK(sy::silu::apply(1.0f) == Catch::Approx(0.731059).epsilon(1e-5));
  CHECK(sy::silu::apply(1.0f, 2.0f) == Catch::Approx(1.462117).epsilon(1e-5));
  CHECK(sy::silu::apply(0.0f) == 0.0f);
}

TEST_CASE("activations of large arguments are finite", "[expert]") {
  for (float x : {-1000.0f, 1000.0f, -1e10f, 1e10f}) {
    CAPTURE(x);
    float const expected = x > 0 ? x : 0.0f;
    CHECK(sy::relu::apply(x) == expected);
    CHECK(sy::gelu::apply(x) == expected);
    CHECK(sy::gelu_tanh::apply(x) == expected);
    CHECK(sy::silu::apply(x) == expected);
    CHECK(std::isfinite(sy::clamped_swiglu<>::apply(x, x)));
  }
}

TEST_CASE("clamped_swiglu clamps the gate from above and the up value from both sides", "[expert]") {
  using published = sy::clamped_swiglu<>;
  int wrong = 0;
  for (int i = -80; i <= 80; ++i) {
    for (int j = -80; j <= 80; ++j) {
      double const gate = i / 8.0, up = j / 8.0;
      double const g = std::min(gate, 7.0), u = std::clamp(up, -7.0, 7.0);
      double const expected = g * sigmoid(1.702 * g) * (u + 1.0);
      if (!close(published::apply(static_cast<float>(gate), static_cast<float>(up)), expected, gate)) ++wrong;
    }
  }
  CHECK(wrong == 0);
  CHECK(published::apply(100.0f, 0.0f) == published::apply(7.0f, 0.0f));
  CHECK(published::apply(1.0f, -9.0f) == published::apply(1.0f, -7.0f));
  CHECK(published::apply(-8.0f, 0.0f) != published::apply(-7.0f, 0.0f));
  CHECK(published::apply(3.0f, -1.0f) == 0.0f);
  using unshifted = sy::clamped_swiglu<7, 1, 1, 1, 0>;
  CHECK(unshifted::name == "clamped_swiglu<7,1,0>");
  CHECK(unshifted::apply(9.0f, -8.0f) == Catch::Approx(7.0 * sigmoid(7.0) * -7.0));
  CHECK(unshifted::apply(-1.0f, 2.0f) == Catch::Approx(-1.0 * sigmoid(-1.0) * 2.0));
  CHECK(published::name == "clamped_swiglu<7,851:500>");
  CHECK(sy::clamped_swiglu<1, 2, 2, 1>::apply(5.0f, 5.0f) == Catch::Approx(0.5 * sigmoid(1.0) * 1.5));
}

TEST_CASE("a NaN goes through every activation", "[expert]") {
  float const nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(std::isnan(sy::relu::apply(nan)));
  CHECK(std::isnan(sy::relu_squared::apply(nan)));
  CHECK(std::isnan(sy::gelu::apply(nan)));
  CHECK(std::isnan(sy::gelu_tanh::apply(nan)));
  CHECK(std::isnan(sy::silu::apply(nan)));
  CHECK(std::isnan(sy::silu::apply(1.0f, nan)));
  CHECK(std::isnan(sy::clamped_swiglu<>::apply(nan, 1.0f)));
  CHECK(std::isnan(sy::clamped_swiglu<>::apply(1.0f, nan)));
}
