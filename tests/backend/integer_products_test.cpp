#include <switchyard/expert/stored_as.hpp>
#include <switchyard/quantised/blocks.hpp>
#include <switchyard/quantised/scaled.hpp>
#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "catch.hpp"
#include "support/compare.hpp"
#include "support/random_numbers.hpp"
#include "support/said.hpp"

namespace sy = switchyard;
namespace q = sy::quantised;
using namespace sy::cpu;

namespace {

template <class Format>
inline constexpr bool is_channel = std::is_same_v<Format, q::int8_channel<float>>;
template <class Format>
inline constexpr int block_bytes = 0;
template <class Block>
inline constexpr int block_bytes<q::block_matrix<Block>> = Block::bytes;

/// Matrices of random codes, [2, rows, columns].
template <class Format>
struct matrices {
  static constexpr int experts = 2;
  std::vector<std::uint8_t> bytes, powers;
  std::vector<std::int8_t> codes;
  std::vector<float> scales;
  Format all;

  matrices(int rows, int columns, support::random_numbers& random) {
    std::int64_t const count = std::int64_t{experts} * rows * columns;
    auto const power = [&] { return static_cast<std::uint8_t>(120 + random.below(3)); };
    if constexpr (is_channel<Format>) {
      for (std::int64_t i = 0; i < count; ++i) codes.push_back(static_cast<std::int8_t>(random.below(256) - 128));
      for (int r = 0; r < experts * rows; ++r) scales.push_back(static_cast<float>(1e-3 * random.uniform()));
      all = {codes.data(), scales.data(), rows, columns};
    } else {
      constexpr bool by_blocks = block_bytes < Format >> 0;
      std::int64_t const size = by_blocks ? count / Format::whole * block_bytes<Format> : count / 2;
      for (std::int64_t i = 0; i < size; ++i) bytes.push_back(static_cast<std::uint8_t>(random.below(256)));
      if constexpr (!by_blocks) {
        for (std::int64_t i = 0; i < count / 32; ++i) powers.push_back(power());
        all = {bytes.data(), powers.data(), rows, columns};
      } else {
        for (std::size_t b = 0; b < bytes.size(); b += block_bytes<Format>) {
          if (block_bytes<Format> == 17) {
            bytes[b] = power();
            continue;
          }
          for (std::size_t at : {0, 2}) {
            if (at == 2 && block_bytes<Format> != 144) continue;
            sy::half const scale(static_cast<float>(5e-4 * (0.5 + random.uniform())));
            bytes[b + at] = static_cast<std::uint8_t>(scale.bits & 255);
            bytes[b + at + 1] = static_cast<std::uint8_t>(scale.bits >> 8);
          }
        }
        all = Format::packed(bytes.data(), rows, columns);
      }
    }
  }
  double at(int expert, int row, int column) const {
    float weight;
    all.read(expert, row, column, 1, &weight);
    return weight;
  }
};

template <class Format>
void check_codes() {
  support::random_numbers random(5);
  matrices<Format> const w(3, 512, random);
  for (int row = 0; row < 3; ++row) {
    for (int column = 0; column < 512; column += 32) {
      float expected[32];
      w.all.read(1, row, column, 32, expected);
      coded_chunk got = {};
      integer_codes<Format>::chunk(w.all, 1, row, column, 32, got);
      for (int i = 0; i < 32; ++i) CHECK(got.scale * static_cast<float>(got.codes[i]) - got.least == expected[i]);
    }
  }
}

/// Two gated experts over random rows.
template <class Format>
struct problem {
  static constexpr int rows = 61, experts = 2;
  int hidden, intermediate;
  support::random_numbers random{9};
  matrices<Format> gate, up, down;
  std::vector<sy::bfloat16> tokens;
  std::int32_t const offsets[experts + 1] = {0, 17, rows};

  problem(int hidden_size, int intermediate_size)
      : hidden(hidden_size),
        intermediate(intermediate_size),
        gate(intermediate, hidden, random),
        up(intermediate, hidden, random),
        down(hidden, intermediate, random) {
    for (int i = 0; i < rows * hidden; ++i) tokens.emplace_back(static_cast<float>(random.normal()));
  }

  std::vector<float> results(sy::instruction_set set, sy::quantised_products how) const {
    using operand = sy::quantised_matrix<sy::bfloat16, Format>;
    std::int64_t const places = most_padded_rows(rows, experts);
    std::vector<float> inner(places * row_floats(intermediate)), outer(places * row_floats(hidden));
    std::int64_t first_padded_row[experts + 1], first_item[experts + 1];
    sy::cpu_context const context = resolved({.threads = 1, .instructions = set, .quantised = how});
    run_products<operand>(context, row_ranges::of(offsets, experts), {.tokens = {tokens.data(), rows, hidden}},
                          activation_of<sy::expert::gated_mlp<sy::silu>>(context.instructions),
                          {{gate.all, up.all, {}, {}}, down.all, {}, hidden, intermediate},
                          {first_padded_row, first_item, inner.data(), outer.data(), outer.data()});
    outer.resize(static_cast<std::size_t>(rows) * hidden);
    return outer;
  }

  std::vector<double> expected() const {
    std::vector<double> result;
    for (int r = 0; r < rows; ++r) {
      int const e = r < offsets[1] ? 0 : 1;
      std::vector<double> inner;
      for (int i = 0; i < intermediate; ++i) {
        double of_gate = 0, of_up = 0;
        for (int h = 0; h < hidden; ++h) {
          double const x = static_cast<float>(tokens[r * hidden + h]);
          of_gate += x * gate.at(e, i, h);
          of_up += x * up.at(e, i, h);
        }
        inner.push_back(of_gate / (1 + std::exp(-of_gate)) * of_up);
      }
      for (int h = 0; h < hidden; ++h) {
        double sum = 0;
        for (int i = 0; i < intermediate; ++i) sum += inner[i] * down.at(e, h, i);
        result.push_back(sum);
      }
    }
    return result;
  }
};

template <class Format>
void check_products(int hidden, int intermediate) {
  problem<Format> const p(hidden, intermediate);
  auto const integers = sy::quantised_products::tokens_in_int8;
  std::vector<float> const got = p.results(sy::instruction_set::portable, integers);
  double const error = support::relative_error(got, p.expected());
  CHECK(error < 0.015);
  CHECK(error > 0.002);  // tokens were rounded
  for (sy::instruction_set set : {sy::instruction_set::avx2, sy::instruction_set::avx512, sy::instruction_set::amx}) {
    if (set > sy::best_instruction_set()) continue;
    // Activations differ by a rounding, which may be one of 8 bits.
    CHECK(support::relative_error(p.results(set, integers), got) < 1e-4);
  }
  CHECK(support::relative_error(p.results(sy::instruction_set::portable, sy::quantised_products::exact), p.expected()) <
        1e-5);
}

/// The products of a tile and a panel.
template <class Operand>
std::vector<float> products(panel_kernels<Operand> const& kernels, Operand const& weights, int depth,
                            std::vector<sy::bfloat16> const& tokens) {
  constexpr int rows = 8;
  std::vector<float> panel(kernels.width * row_floats(depth)), sums(kernels.features * kernels.width), result;
  alignas(64) float memory[item_floats];
  sy::bfloat16 const* first[rows];
  for (int r = 0; r < rows; ++r) first[r] = tokens.data() + r * depth;
  kernels.pack(first, rows, kernels.width, depth, panel.data());
  for (int k = 0; k < depth; k += kernels.depth) {
    int const length = std::min(kernels.depth, depth - k);
    ready_weights const ready = kernels.prepare(features_of(weights, 1, 3, 9), k, length, memory);
    kernels.multiply(ready, panel.data() + k * kernels.width, length, k == 0, sums.data(), {});
  }
  for (int f = 0; f < 9; ++f) {
    for (int r = 0; r < rows; ++r) result.push_back(sums[f * kernels.width + r]);
  }
  return result;
}

}  // namespace

TEST_CASE("codes times scales are the weights of every format with integer products", "[experts][quantised]") {
  check_codes<q::block_matrix<q::q8_0>>();
  check_codes<q::block_matrix<q::q4_0>>();
  check_codes<q::block_matrix<q::q4_K>>();
  check_codes<q::block_matrix<q::mxfp4_halves>>();
  check_codes<q::mxfp4>();
  check_codes<q::int8_channel<float>>();
}

TEST_CASE("integer products are those of the weights but for the rounding of tokens", "[experts][quantised]") {
  check_products<q::block_matrix<q::q4_K>>(256, 256);
  check_products<q::int8_channel<float>>(650, 75);
}

TEST_CASE("integer products have the same bits with every instruction set", "[experts][quantised]") {
  using operand = sy::quantised_matrix<sy::bfloat16, q::block_matrix<q::q4_K>>;
  support::random_numbers random(3);
  matrices<q::block_matrix<q::q4_K>> const w(12, 768, random);
  std::vector<sy::bfloat16> tokens;
  for (int i = 0; i < 8 * 768; ++i) tokens.emplace_back(static_cast<float>(random.normal()));
  std::fill_n(tokens.begin() + 32, 32, sy::bfloat16(0.0f));
  auto const by = [&](sy::instruction_set set) {
    return products(integer_panel_kernels_of<operand>(set), operand(w.all), 768, tokens);
  };
  std::vector<float> const expected = by(sy::instruction_set::portable);
  for (sy::instruction_set set : {sy::instruction_set::avx2, sy::instruction_set::avx512}) {
    if (set <= sy::best_instruction_set()) CHECK(support::same_bits(by(set), expected));
  }
  // What is no number reaches the results of its token, and of no other one.
  tokens[768 + 700] = sy::bfloat16(std::numeric_limits<float>::quiet_NaN());
  for (sy::instruction_set set : {sy::instruction_set::portable, sy::best_instruction_set()}) {
    std::vector<float> const got = by(set);
    for (std::size_t i = 0; i < got.size(); ++i) CHECK((i % 8 == 1 ? std::isnan(got[i]) : got[i] == expected[i]));
  }
}

TEST_CASE("integer products are refused where there are none", "[errors][quantised]") {
  using dense =
      sy::layer<sy::shape{32, 16, 2, 1}, sy::router::softmax_top_k, sy::capacity::dropless, sy::expert::mlp<sy::relu>>;
  std::vector<float> x(32), router(64), up(2 * 512), down(2 * 512), y(32);
  std::vector<std::byte> scratch(dense::workspace_bytes(1));
  auto const said = [&](sy::quantised_products how) {
    return support::said([&] {
      dense::forward({.tokens = dense::rows(x.data(), 1),
                      .weights = {.router = {.weight = router.data()},
                                  .up_proj = dense::in_proj(up.data()),
                                  .down_proj = dense::out_proj(down.data())},
                      .output = dense::rows(y.data(), 1),
                      .workspace = scratch},
                     {.quantised = how});
    });
  };
  CHECK(said(sy::quantised_products::tokens_in_int8) ==
        "switchyard: layer::forward, context.quantised: expected quantised_products::exact, or experts stored as q8_0, "
        "q4_0, q4_K, mxfp4, mxfp4_halves or int8_channel, got tokens_in_int8 with mlp<relu>");
  CHECK(said(sy::quantised_products::tokens_in_fp8) ==
        "switchyard: layer::forward, context.quantised: expected quantised_products::exact or tokens_in_int8 "
        "(backend::hopper has fp8), got tokens_in_fp8");
}
