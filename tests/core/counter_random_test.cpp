#include <switchyard/core/counter_random.hpp>

#include <cmath>
#include <cstdint>
#include <limits>

#include "catch.hpp"

namespace sy = switchyard;

TEST_CASE("Philox gives the published answers", "[core]") {
  // From the known-answer tests of Random123, the authors' library.
  static_assert(sy::philox({}, 0, 0) == sy::philox_block{{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  constexpr std::uint32_t ones = 0xffffffff;
  CHECK(sy::philox({{ones, ones, ones, ones}}, ones, ones) ==
        sy::philox_block{{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  CHECK(sy::philox({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0) ==
        sy::philox_block{{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

TEST_CASE("seed, stream and index are the key and the two halves of the counter", "[core]") {
  sy::counter_random const numbers{.seed = 0x299f31d0a4093822, .stream = 0x0370734413198a2e};
  CHECK(numbers.block(0x85a308d3243f6a88) == sy::philox_block{{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

TEST_CASE("uniform numbers are the upper 24 bits of the words in turn", "[core]") {
  constexpr sy::counter_random numbers{};
  static_assert(numbers.uniform(0) == 0x6627e8 * 0x1p-24f);
  CHECK(numbers.uniform(1) == 0xe169c5 * 0x1p-24f);
  CHECK(numbers.uniform(2) == 0xbc57ac * 0x1p-24f);
  CHECK(numbers.uniform(3) == 0x9b00db * 0x1p-24f);
  CHECK(numbers.uniform(4) == static_cast<float>(numbers.block(1).word[0] >> 8) * 0x1p-24f);
  CHECK(numbers.uniform(std::numeric_limits<std::uint64_t>::max()) < 1.0f);
}

TEST_CASE("normal numbers are those of Box and Muller by hand", "[core]") {
  sy::counter_random const numbers{};
  double const radius = std::sqrt(-2.0 * std::log((0xbc57ac4c + 0.5) / 4294967296.0));
  double const angle = 2.0 * std::acos(-1.0) * 0x9b00dbd8 / 4294967296.0;
  CHECK(numbers.normal(2) == Catch::Approx(radius * std::cos(angle)).epsilon(1e-7));
  CHECK(numbers.normal(3) == Catch::Approx(radius * std::sin(angle)).epsilon(1e-7));
  float four[4];
  numbers.normals(5, four);
  for (int i = 0; i < 4; ++i) CHECK(numbers.normal(20u + static_cast<unsigned>(i)) == four[i]);
}

TEST_CASE("many random numbers have the moments of their distribution", "[core]") {
  constexpr int count = 1 << 18;
  double const deviation_of_mean = 1.0 / std::sqrt(count);
  sy::counter_random const numbers{.seed = 1, .stream = 2};
  double uniform = 0.0, normal[5] = {}, neighbours = 0.0, streams = 0.0, seeds = 0.0;
  int beyond_two = 0;
  float previous = 0.0f;
  for (unsigned i = 0; i < count; i += 4) {
    float four[4], of_stream[4], of_seed[4];
    numbers.normals(i / 4, four);
    sy::counter_random{.seed = 1, .stream = 3}.normals(i / 4, of_stream);
    sy::counter_random{.seed = 2, .stream = 2}.normals(i / 4, of_seed);
    for (unsigned k = 0; k < 4; ++k) {
      double const x = four[k];
      uniform += numbers.uniform(i + k) / count;
      for (int power = 1; power <= 4; ++power) normal[power] += std::pow(x, power) / count;
      beyond_two += std::abs(x) > 2.0;
      neighbours += x * previous / count;
      streams += x * of_stream[k] / count;
      seeds += x * of_seed[k] / count;
      previous = four[k];
    }
  }
  // Four standard deviations of each estimate.
  CHECK(std::abs(uniform - 0.5) < 4.0 * std::sqrt(1.0 / 12.0) * deviation_of_mean);
  CHECK(std::abs(normal[1]) < 4.0 * deviation_of_mean);
  CHECK(std::abs(normal[2] - 1.0) < 4.0 * std::sqrt(2.0) * deviation_of_mean);
  CHECK(std::abs(normal[3]) < 4.0 * std::sqrt(15.0) * deviation_of_mean);
  CHECK(std::abs(normal[4] - 3.0) < 4.0 * std::sqrt(96.0) * deviation_of_mean);
  double const tail = std::erfc(std::sqrt(2.0));
  CHECK(std::abs(static_cast<double>(beyond_two) / count - tail) <
        4.0 * std::sqrt(tail * (1.0 - tail)) * deviation_of_mean);
  CHECK(std::abs(neighbours) < 4.0 * deviation_of_mean);
  CHECK(std::abs(streams) < 4.0 * deviation_of_mean);
  CHECK(std::abs(seeds) < 4.0 * deviation_of_mean);
}
