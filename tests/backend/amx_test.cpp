#include <switchyard/switchyard.hpp>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "backend/emulated_tiles.hpp"
#include "catch.hpp"
#include "support/compare.hpp"
#include "support/random_numbers.hpp"

namespace sy = switchyard;
using namespace sy::cpu;
using support::emulated_tiles;
using sy::bfloat16;

namespace {

/// The products of four experts on random rows, in float: by tiles, or row by row.
template <class Element, class Tiles = emulated_tiles>
std::vector<float> products(bool by_tiles, int hidden, int intermediate, bool transposed, int threads) {
  using expert = sy::expert::with_bias<sy::expert::gated_mlp<sy::silu>>;
  constexpr int experts = 4;
  std::int32_t const offsets[experts + 1] = {0, 300, 307, 340, 357};
  int const rows = offsets[experts];
  support::random_numbers random(7);
  auto const numbers = [&](std::int64_t count, double deviation) {
    std::vector<Element> values(count);
    for (Element& v : values) v = Element(static_cast<float>(deviation * random.normal()));
    return values;
  };
  std::int64_t const matrices = std::int64_t{experts} * hidden * intermediate;
  auto const tokens = numbers(std::int64_t{rows} * hidden, 1.0);
  auto const gate = numbers(matrices, 1.0 / std::sqrt(hidden)), up = numbers(matrices, 1.0 / std::sqrt(hidden));
  auto const down = numbers(matrices, 1.0 / std::sqrt(intermediate));
  auto const in_bias = numbers(experts * intermediate, 0.5), out_bias = numbers(experts * hidden, 0.5);
  auto const view = [&](std::vector<Element> const& of, int features, int depth) {
    using views = sy::weight_view<Element>;
    return transposed ? views::transposed(of.data(), features, depth) : views::packed(of.data(), features, depth);
  };
  using biases = sy::bias_view<Element>;
  input_projection<sy::weight_view<Element>> const in{view(gate, intermediate, hidden), view(up, intermediate, hidden),
                                                      biases::packed(in_bias.data(), intermediate),
                                                      biases::packed(in_bias.data(), intermediate)};
  std::int64_t const places = most_padded_rows(rows, experts);
  float const nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> inner(places * row_floats(intermediate), nan), outer(places * row_floats(hidden), nan);
  std::int64_t first_padded_row[experts + 1], first_item[experts + 1];
  sy::cpu_context const where = resolved({.threads = threads, .instructions = sy::instruction_set::portable});
  std::vector<std::int32_t> pair_of(rows);
  std::vector<float> row_weights(rows);
  for (int r = 0; r < rows; ++r) {
    pair_of[r] = r;
    row_weights[r] = 1.0f - 0.001f * static_cast<float>(r);
  }
  run_products<sy::weight_view<Element>>(
      where, row_kernels_of<sy::weight_view<Element>>(where.instructions),
      amx::panel_kernels_with<Tiles, sy::weight_view<Element>>(),
      {row_ranges::of(offsets, experts), first_padded_row, first_item, by_tiles ? 16 : 1'000'000, amx::lanes},
      {.tokens = {tokens.data(), rows, hidden}, .pair_of = pair_of.data(), .weights = row_weights.data()},
      activation_of<expert>(where.instructions),
      {in, view(down, hidden, intermediate), biases::packed(out_bias.data(), hidden), hidden, intermediate},
      inner.data(), outer.data(), outer.data());
  outer.resize(static_cast<std::size_t>(rows) * hidden);
  return outer;
}

}  // namespace

TEMPLATE_TEST_CASE("panels of tiles compute what rows one by one do", "[experts][amx]", bfloat16, float) {
  // In bfloat16, tiles round what goes into the second product, and rows one by one do not. Floats lack the products of the
  // lower halves, of 2^-18 at most each.
  double const allowed = std::is_same_v<TestType, bfloat16> ? 2e-3 : 8e-6;
  struct {
    int hidden, intermediate;
  } const sizes[] = {{64, 96}, {1056, 544}, {40, 33}, {7, 12}, {129, 300}};
  for (auto const& [hidden, intermediate] : sizes) {
    for (bool transposed : {false, true}) {
      INFO(hidden << " x " << intermediate << (transposed ? ", transposed" : ""));
      emulated_tiles::begun = emulated_tiles::ended = 0;
      std::vector<float> const tiles = products<TestType>(true, hidden, intermediate, transposed, 1);
      CHECK(emulated_tiles::begun > 0);
      CHECK(emulated_tiles::begun == emulated_tiles::ended);
      std::vector<float> const rows = products<TestType>(false, hidden, intermediate, transposed, 1);
      CHECK(support::relative_error(tiles, rows) < allowed);
      CHECK(support::same_bits(tiles, products<TestType>(true, hidden, intermediate, transposed, 3)));
      if (sy::best_instruction_set() < sy::instruction_set::amx) continue;
      // The processor adds in another order; what it adds up is rounded to bfloat16 between the products.
      double const rounded = std::is_same_v<TestType, bfloat16> ? 3e-4 : 3e-6;
      auto const of_processor = products<TestType, amx::tiles>(true, hidden, intermediate, transposed, 2);
      CHECK(support::relative_error(of_processor, tiles) < rounded);
    }
  }
}

TEST_CASE("a float is the sum of its two parts", "[experts][amx]") {
  float const most = std::numeric_limits<float>::max(), infinite = std::numeric_limits<float>::infinity();
  float const values[16] = {0.0f, 1.0f, -3.14159265f, 1e-20f, 123456.789f, -1e30f, most, infinite, -infinite};
  bfloat16 part[2][16];
  portable::split_row(values, 16, part[0], 16);
  for (int i = 0; i < 16; ++i) {
    float const sum = static_cast<float>(part[0][i]) + static_cast<float>(part[1][i]);
    if (std::abs(values[i]) < most) {
      CHECK(std::abs(sum - values[i]) <= 0x1p-17f * std::abs(values[i]));
    } else {
      CHECK(std::abs(static_cast<float>(part[0][i])) == infinite);
      CHECK(static_cast<float>(part[1][i]) == 0.0f);
    }
  }
}

TEST_CASE("an element of every row of a panel of tiles has a place of its own", "[experts][amx]") {
  for (int parts : {1, 2}) {
    for (int width : {16, 32}) {
      std::vector<int> visits(96 * width * parts);
      for (std::int64_t k = 0; k < 96; ++k) {
        for (int i = 0; i < width; ++i) {
          for (int p = 0; p < parts; ++p) ++visits[amx::position(k, i, width, parts) + p * (amx::chunk * amx::lanes)];
        }
      }
      CHECK(visits == std::vector<int>(visits.size(), 1));
    }
  }
}
