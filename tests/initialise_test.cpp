#include <switchyard/initialise.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "catch.hpp"
#include "support/said.hpp"

namespace sy = switchyard;
namespace initialise = switchyard::initialise;
using initialise::layer_norm;

using support::said;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

/// The unbiased standard deviation of all elements.
template <class T>
double deviation_of(std::vector<T> const& values) {
  double mean = 0.0, square = 0.0;
  double const count = static_cast<double>(values.size());
  for (T v : values) mean += static_cast<float>(v) / count;
  for (T v : values) square += (static_cast<float>(v) - mean) * (static_cast<float>(v) - mean);
  return std::sqrt(square / (count - 1.0));
}

}  // namespace

TEST_CASE("standard deviations are those of the published configurations", "[initialise]") {
  constexpr double small = initialise::base_deviation(16, layer_norm::before);
  CHECK(small == Catch::Approx(std::sqrt(2.0 / 16.0)).epsilon(1e-15));
  CHECK(initialise::up_proj_deviation(small, 412) == Catch::Approx(0.017418).margin(5e-7));
  CHECK(initialise::down_proj_deviation(small, 16, 128) == Catch::Approx(0.0078125).epsilon(1e-15));
  CHECK(initialise::router_weight_deviation(small, 412) == initialise::up_proj_deviation(small, 412));

  constexpr double big = initialise::base_deviation(18, layer_norm::before);
  constexpr double up = initialise::up_proj_deviation(big, 1024);
  CHECK(up == Catch::Approx(0.010417).margin(5e-7));
  CHECK(initialise::down_proj_deviation(big, 32, 128) == Catch::Approx(0.005208).margin(5e-7));

  CHECK(initialise::product_key_deviation(small, 412) == Catch::Approx(0.017418).margin(5e-7));
  CHECK(initialise::product_value_deviation_by_width(small, 412) == Catch::Approx(0.017418).margin(5e-7));
  CHECK(initialise::product_value_deviation_by_count(small, 62) == Catch::Approx(0.005702).margin(5e-7));

  static_assert(initialise::base_deviation(16, layer_norm::after) == 1.0);
  static_assert(initialise::up_proj_deviation(1.0, 64) == 0.125);
  static_assert(initialise::vertical_factor_deviation == 0.01 && initialise::flat_factor_deviation == 0.0);
}

TEST_CASE("the square root while compiling is the one of the standard library", "[initialise]") {
  for (double value = 1e-12; value < 1e19; value *= 1.37) {
    INFO(value);
    double const right = std::sqrt(value), got = initialise::detail::square_root(value);
    CHECK(std::abs(got - right) <= std::nextafter(right, infinity) - right);
  }
}

TEMPLATE_TEST_CASE("an array gets normal numbers of the deviation that was asked for", "[initialise]", float,
                   sy::bfloat16, sy::half) {
  std::vector<TestType> values(1 << 16);
  initialise::normal(values.data(), 1 << 16, 0.02, {.seed = 3});
  double mean = 0.0;
  for (TestType v : values) mean += static_cast<float>(v) / static_cast<double>(values.size());
  CHECK(std::abs(mean) < 4.0 * 0.02 / 256.0);
  CHECK(std::abs(deviation_of(values) / 0.02 - 1.0) < 4.0 / std::sqrt(2.0) / 256.0);
}

TEST_CASE("an array has the same numbers whatever parts it is filled in", "[initialise]") {
  constexpr int count = 41;
  sy::counter_random const numbers{.seed = 11, .stream = 5};
  std::vector<float> whole(count), parts(count), backwards(count);
  initialise::normal(whole.data(), count, 0.5, numbers);
  int const borders[] = {0, 1, 6, 7, 16, 39, count};
  for (int i = 5; i >= 0; --i) {
    std::uint64_t const first = static_cast<std::uint64_t>(borders[i]);
    initialise::normal(parts.data() + borders[i], borders[i + 1] - borders[i], 0.5, numbers, first);
  }
  CHECK(parts == whole);
  for (int i = count - 1; i >= 0; --i) backwards[i] = 0.5f * numbers.normal(static_cast<std::uint64_t>(i));
  CHECK(backwards == whole);
  initialise::normal(parts.data(), count, 0.5, {.seed = 11, .stream = 6});
  CHECK(parts != whole);
}

TEST_CASE("filling with a deviation of 0 gives positive zeros", "[initialise]") {
  std::vector<float> values(9, 7.0f);
  initialise::normal(values.data(), 9, initialise::flat_factor_deviation, {});
  for (float v : values) CHECK((v == 0.0f && !std::signbit(v)));
}

TEST_CASE("rows of a router weight get one length and keep the matrix's deviation", "[initialise]") {
  std::vector<float> weight{3.0f, 4.0f, 0.0f, 5.0f, 1.0f, 0.0f};
  REQUIRE(deviation_of(weight) == Catch::Approx(2.136976).margin(5e-7));
  initialise::equalise_rows({weight.data(), 3, 2});
  float const right[] = {2.767379f, 3.689838f, 0.0f, 4.612298f, 4.612298f, 0.0f};
  for (int i = 0; i < 6; ++i) CHECK(weight[i] == Catch::Approx(right[i]).margin(1e-6));
  CHECK(deviation_of(weight) == Catch::Approx(2.136976).margin(5e-7));
}

TEST_CASE("rows that stand apart are equalised, and what is between them is left alone", "[initialise]") {
  constexpr int experts = 7, hidden = 20, stride = 23;
  std::vector<float> dense(experts * hidden), apart(experts * stride, -3.0f);
  initialise::normal(dense.data(), experts * hidden, 0.1, {.seed = 4});
  double const before = deviation_of(dense);
  for (int e = 0; e < experts; ++e) {
    for (int i = 0; i < hidden; ++i) apart[e * stride + i] = dense[e * hidden + i];
  }
  initialise::equalise_rows({dense.data(), experts, hidden});
  initialise::equalise_rows({apart.data(), experts, hidden, stride});
  CHECK(deviation_of(dense) == Catch::Approx(before).epsilon(1e-6));
  double first = 0.0;
  for (int e = 0; e < experts; ++e) {
    double square = 0.0;
    for (int i = 0; i < stride; ++i) {
      CHECK(apart[e * stride + i] == (i < hidden ? dense[e * hidden + i] : -3.0f));
      if (i < hidden) square += dense[e * hidden + i] * dense[e * hidden + i];
    }
    if (e == 0) first = square;
    CHECK(square == Catch::Approx(first).epsilon(1e-6));
  }
}

TEST_CASE("an initialisation that cannot be says why", "[initialise]") {
  CHECK(said([] { initialise::base_deviation(0, layer_norm::before); }) ==
        "switchyard: initialise::base_deviation, layers: expected at least 1, got 0");
  CHECK(said([] { initialise::up_proj_deviation(1.0, 0); }) ==
        "switchyard: initialise::up_proj_deviation, hidden: expected at least 1, got 0");
  CHECK(said([] { initialise::down_proj_deviation(1.0, 0, 4); }) ==
        "switchyard: initialise::down_proj_deviation, experts: expected at least 1, got 0");
  CHECK(said([] { initialise::down_proj_deviation(1.0, 4, -1); }) ==
        "switchyard: initialise::down_proj_deviation, intermediate: expected at least 1, got -1");
  CHECK(said([] { initialise::router_weight_deviation(-1.0, 4); }) ==
        "switchyard: initialise::router_weight_deviation, base: expected a finite number that is not negative, got "
        "-1.000000");
  CHECK(said([] { initialise::product_key_deviation(1.0, 0); }) ==
        "switchyard: initialise::product_key_deviation, hidden: expected at least 1, got 0");
  CHECK(said([] { initialise::product_value_deviation_by_width(1.0, 0); }) ==
        "switchyard: initialise::product_value_deviation_by_width, hidden: expected at least 1, got 0");
  CHECK(said([] { initialise::product_value_deviation_by_count(1.0, 0); }) ==
        "switchyard: initialise::product_value_deviation_by_count, keys: expected at least 1, got 0");

  float values[4] = {1.0f, 2.0f, 3.0f, 4.0f};
  CHECK(said([&] { initialise::normal(values, 0, 1.0, {}); }) ==
        "switchyard: initialise::normal, count: expected at least 1, got 0");
  CHECK(said([] { initialise::normal(static_cast<float*>(nullptr), 4, 1.0, {}); }) ==
        "switchyard: initialise::normal, data: expected 4 elements, got a null pointer");
  CHECK(said([&] { initialise::normal(values, 4, infinity, {}); }) ==
        "switchyard: initialise::normal, deviation: expected a finite number that is not negative, got inf");
  CHECK(said([&] { initialise::normal(values, 4, -0.5, {}); }).ends_with("got -0.500000"));

  std::string const weight = "switchyard: initialise::equalise_rows, weight";
  CHECK(said([&] {
          initialise::equalise_rows({values, 0, 4});
        }) == weight + ": expected at least 1 x 1 (experts x hidden), got 0 x 4");
  CHECK(said([&] {
          initialise::equalise_rows({nullptr, 2, 2});
        }) == weight + ": expected a matrix, got a null pointer");
  CHECK(said([&] {
          initialise::equalise_rows({values, 2, 2, 1});
        }) == weight + ", row stride: expected at least 2, got 1");
  CHECK(values[3] == 4.0f);
  float zero_row[4] = {1.0f, 2.0f, 0.0f, 0.0f}, not_finite[4] = {1.0f, 2.0f, static_cast<float>(infinity), 0.0f};
  CHECK(said([&] {
          initialise::equalise_rows({zero_row, 2, 2});
        }) == weight + ": expected rows of finite numbers that are not all 0, got one of length 0.000000 for expert 1");
  CHECK(said([&] {
          initialise::equalise_rows({not_finite, 2, 2});
        }) == weight + ": expected rows of finite numbers that are not all 0, got one of length inf for expert 1");
  CHECK((zero_row[0] == 1.0f && not_finite[1] == 2.0f));
  float alike[6] = {0.1f, 0.1f, 0.1f, 0.7f, 0.7f, 0.7f}, single[1] = {5.0f};
  std::string const nowhere = weight +
                              ": expected rows of one length that differ somewhere, got the same number "
                              "everywhere";
  CHECK(said([&] { initialise::equalise_rows({alike, 2, 3}); }) == nowhere);
  CHECK(said([&] { initialise::equalise_rows({single, 1, 1}); }) == nowhere);
}
