#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "catch.hpp"
#include "support/compare.hpp"
#include "support/random_numbers.hpp"

namespace {

namespace sy = switchyard;
using namespace sy::cpu;

constexpr sy::instruction_set all_sets[] = {sy::instruction_set::portable, sy::instruction_set::avx2,
                                            sy::instruction_set::avx512};

template <class Element>
std::vector<Element> numbers(std::int64_t count, std::uint32_t seed) {
  support::random_numbers random(seed);
  std::vector<Element> values(static_cast<std::size_t>(count));
  for (Element& v : values) v = Element(static_cast<float>(random.normal()));
  return values;
}

/// The products of some rows, and what surrounds them in memory is never touched.
template <class Element>
std::vector<float> products(sy::instruction_set set, std::vector<Element const*> const& rows,
                            feature_tile<sy::weight_view<Element>> const& weights, std::int64_t depth,
                            feature_tile<sy::weight_view<Element>> const& next = {}) {
  auto const kernels = row_kernels_of<sy::weight_view<Element>>(set);
  int const count = static_cast<int>(rows.size()), stride = weights.features + 3;
  std::vector<float> memory(static_cast<std::size_t>(count * row_floats(depth) + 32));
  float* const grouped = memory.data() + 16 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64 / 4;
  kernels.group(rows.data(), count, depth, grouped);
  float const untouched = -12345.0f;
  std::vector<float> to(static_cast<std::size_t>(count) * stride, untouched), result;
  multiply_rows(kernels, {grouped, count}, weights, depth, next, to.data(), stride);
  for (int r = 0; r < count; ++r) {
    for (int f = 0; f < stride; ++f) {
      float const value = to[static_cast<std::size_t>(r) * stride + f];
      if (f < weights.features) {
        result.push_back(value);
      } else {
        REQUIRE(value == untouched);
      }
    }
  }
  return result;
}

}  // namespace

TEMPLATE_TEST_CASE("products of few rows", "[experts]", float, sy::bfloat16, sy::half) {
  using element = TestType;
  struct {
    int rows, features, depth;
  } const cases[] = {{1, 1, 1},   {1, 64, 640}, {2, 5, 31},   {3, 31, 64},   {4, 4, 1030}, {5, 33, 100}, {6, 64, 512},
                     {7, 3, 257}, {8, 17, 96},  {13, 50, 70}, {15, 2, 2048}, {22, 9, 33},  {32, 12, 48}};
  for (auto const& [rows, features, depth] : cases) {
    INFO(rows << " rows, " << features << " features, depth " << depth);
    // Rows and features further apart than they are long.
    std::int64_t const row_stride = depth + 5;
    auto const tokens = numbers<element>(rows * row_stride, 3);
    auto const matrix = numbers<element>(std::int64_t{features} * row_stride, 5);
    auto const turned = [&, features = features, depth = depth] {
      std::vector<element> t(static_cast<std::size_t>(features) * depth);
      for (int f = 0; f < features; ++f) {
        for (int k = 0; k < depth; ++k) t[k * features + f] = matrix[f * row_stride + k];
      }
      return t;
    }();
    std::vector<element const*> pointers;
    for (int r = 0; r < rows; ++r) pointers.push_back(tokens.data() + r * row_stride);
    std::vector<double> expected;
    double scale = 0.0;
    for (int r = 0; r < rows; ++r) {
      for (int f = 0; f < features; ++f) {
        double sum = 0.0;
        for (int k = 0; k < depth; ++k) {
          sum +=
              static_cast<double>(static_cast<float>(pointers[r][k])) * static_cast<float>(matrix[f * row_stride + k]);
        }
        expected.push_back(sum);
        scale = std::max(scale, std::abs(sum));
      }
    }
    feature_tile<sy::weight_view<element>> const weights{matrix.data(), row_stride, 1, features};
    feature_tile<sy::weight_view<element>> const transposed{turned.data(), 1, features, features};
    for (sy::instruction_set set : all_sets) {
      if (set > sy::best_instruction_set()) continue;
      INFO(sy::name_of(set));
      auto const got = products(set, pointers, weights, depth);
      auto const got_transposed = products(set, pointers, transposed, depth);
      for (std::size_t i = 0; i < expected.size(); ++i) {
        REQUIRE(std::abs(got[i] - expected[i]) <= 1e-5 * scale + 1e-6);
        REQUIRE(std::abs(got_transposed[i] - expected[i]) <= 1e-5 * scale + 1e-6);
      }
      // What is fetched meanwhile shows nowhere, whatever its shape.
      CHECK(support::same_bits(got, products(set, pointers, weights, depth, {matrix.data(), row_stride, 1, 1})));
      CHECK(support::same_bits(got, products(set, pointers, weights, depth, weights)));
      // A row is the same whatever rows stand beside it, a feature whatever features do.
      auto const last = products(set, {pointers.back()}, weights, depth);
      CHECK(support::same_bits(std::vector<float>(got.end() - features, got.end()), last));
      auto const one =
          products<element>(set, pointers, {matrix.data() + (features - 1) * row_stride, row_stride, 1, 1}, depth);
      CHECK(one.back() == got.back());
    }
  }
}

TEST_CASE("numbers that are none stay in their rows and features", "[experts]") {
  constexpr int rows = 9, features = 10, depth = 100;
  auto tokens = numbers<float>(rows * depth, 3);
  auto matrix = numbers<float>(features * depth, 5);
  tokens[4 * depth + 99] = std::numeric_limits<float>::quiet_NaN();
  matrix[7 * depth + 17] = std::numeric_limits<float>::infinity();
  std::vector<float const*> pointers;
  for (int r = 0; r < rows; ++r) pointers.push_back(tokens.data() + r * depth);
  for (sy::instruction_set set : all_sets) {
    if (set > sy::best_instruction_set()) continue;
    auto const got = products<float>(set, pointers, {matrix.data(), depth, 1, features}, depth);
    for (int r = 0; r < rows; ++r) {
      for (int f = 0; f < features; ++f) CHECK(std::isfinite(got[r * features + f]) == (r != 4 && f != 7));
    }
  }
}

TEST_CASE("a context tells how it runs", "[layer]") {
  CHECK(sy::describe({.threads = 1, .instructions = sy::instruction_set::portable}) == "portable, 1 thread");
  CHECK_THROWS_AS(sy::describe({.threads = -1}), sy::error);
}
