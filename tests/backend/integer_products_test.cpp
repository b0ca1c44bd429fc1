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

/// Two gated experts over random rows.
template <class Format>
struct problem {
  static constexpr int experts = 2;
  int hidden, intermediate, rows;
  support::random_numbers random{9};
  matrices<Format> gate, up, down;
  std::vector<sy::bfloat16> tokens;
  std::int32_t const offsets[experts + 1];

  problem(int hidden_size, int intermediate_size, int row_count)
      : hidden(hidden_size),
        intermediate(intermediate_size),
        rows(row_count),
        gate(intermediate, hidden, random),
        up(intermediate, hidden, random),
        down(hidden, intermediate, random),
        offsets{0, row_count / 4, row_count} {
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
void check_experts(int hidden, int intermediate, int rows) {
  problem<Format> const p(hidden, intermediate, rows);
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

/// Rows that are rounded as documented.
std::vector<double> rounded(std::vector<sy::bfloat16> const& tokens, int depth) {
  std::vector<double> result;
  for (std::size_t row = 0; row < tokens.size(); row += depth) {
    for (int k = 0; k < depth; k += 32) {
      int const count = std::min(32, depth - k);
      float most = 0;
      for (int i = 0; i < count; ++i) most = std::max(most, std::abs(static_cast<float>(tokens[row + k + i])));
      for (int i = 0; i < count; ++i) {
        double const code = most == 0 ? 0 : std::nearbyint(static_cast<float>(tokens[row + k + i]) * (127 / most));
        result.push_back(code * (most / 127));
      }
    }
  }
  return result;
}

template <class Format>
using operand_of = sy::quantised_matrix<sy::bfloat16, Format>;

/// The products of some rows and features 3 to 11 of the second expert, [rows, 9].
template <class Format>
std::vector<float> products(row_kernels<operand_of<Format>> const& kernels, operand_of<Format> const& weights,
                            int depth, std::vector<sy::bfloat16> const& tokens) {
  int const rows = static_cast<int>(tokens.size()) / depth;
  std::vector<float> grouped(rows * row_floats(depth)), result(static_cast<std::size_t>(rows) * 9);
  std::vector<sy::bfloat16 const*> first;
  for (int r = 0; r < rows; ++r) first.push_back(tokens.data() + r * depth);
  kernels.group(first.data(), rows, depth, grouped.data());
  kernels.multiply(grouped.data(), rows, {depth, 0, depth}, features_of(weights, 1, 3, 9), {}, result.data(), 9);
  return result;
}

/// All kernels that this machine has.
template <class Format>
std::vector<row_kernels<operand_of<Format>>> all_kernels() {
  using operand = operand_of<Format>;
  std::vector<row_kernels<operand>> result{integer_row_kernels_of<operand>(sy::instruction_set::portable)};
  for (sy::instruction_set set : {sy::instruction_set::avx2, sy::instruction_set::avx512}) {
    if (set <= sy::best_instruction_set()) result.push_back(integer_row_kernels_of<operand>(set));
  }
#if defined(__x86_64__)
  // Without AVX-VNNI, where there is that.
  constexpr code_order order = integer_codes<Format>::order;
  if (sy::instruction_set::avx2 <= sy::best_instruction_set()) {
    result.push_back({&avx2::group_chunks<sy::bfloat16, order>, &avx2::put_in_chunks<order>, nullptr,
                      &avx2::multiply_rows_by_integers<operand, avx2::by_pairs>});
  }
#endif
  return result;
}

template <class Format>
void check_products(int depth) {
  support::random_numbers random(5);
  matrices<Format> const w(12, depth, random);
  for (int rows : {1, 7, 10}) {
    std::vector<sy::bfloat16> tokens;
    for (int i = 0; i < rows * depth; ++i) tokens.emplace_back(static_cast<float>(random.normal()));
    std::vector<double> const left = rounded(tokens, depth);
    std::vector<double> expected;
    for (int r = 0; r < rows; ++r) {
      for (int f = 3; f < 12; ++f) {
        double sum = 0;
        for (int k = 0; k < depth; ++k) sum += left[r * depth + k] * w.at(1, f, k);
        expected.push_back(sum);
      }
    }
    auto const kernels = all_kernels<Format>();
    std::vector<float> const first = products(kernels[0], operand_of<Format>(w.all), depth, tokens);
    CHECK(support::relative_error(first, expected) < 1e-6);
    for (auto const& of : kernels) {
      CHECK(support::same_bits(products(of, operand_of<Format>(w.all), depth, tokens), first));
    }
    if (rows == 7) {  // a row has its bits whatever stands beside it
      std::vector<sy::bfloat16> const alone(tokens.begin() + 2 * depth, tokens.begin() + 3 * depth);
      CHECK(support::same_bits(products(kernels[0], operand_of<Format>(w.all), depth, alone),
                               std::vector<float>(first.begin() + 18, first.begin() + 27)));
    }
  }
}

}  // namespace

TEST_CASE("integer products are those of rounded tokens, with the same bits by every instruction set",
          "[experts][quantised]") {
  check_products<q::block_matrix<q::q8_0>>(544);
  check_products<q::block_matrix<q::q4_0>>(768);
  check_products<q::block_matrix<q::q4_K>>(768);
  check_products<q::block_matrix<q::mxfp4_halves>>(64);
  check_products<q::mxfp4>(1056);
  check_products<q::int8_channel<float>>(650);
  check_products<q::int8_channel<float>>(7);
}

TEST_CASE("experts by integer products differ from exact ones by what rounding tokens makes", "[experts][quantised]") {
  check_experts<q::block_matrix<q::q4_K>>(256, 256, 61);
  check_experts<q::int8_channel<float>>(650, 75, 61);
  check_experts<q::int8_channel<float>>(650, 75, 6);
}

TEST_CASE("what is no number reaches the integer products of its token alone", "[experts][quantised]") {
  using format = q::block_matrix<q::q4_K>;
  support::random_numbers random(3);
  matrices<format> const w(12, 768, random);
  std::vector<sy::bfloat16> tokens;
  for (int i = 0; i < 5 * 768; ++i) tokens.emplace_back(static_cast<float>(random.normal()));
  std::fill_n(tokens.begin() + 32, 32, sy::bfloat16(0.0f));
  auto const kernels = all_kernels<format>();
  std::vector<float> const expected = products(kernels[0], operand_of<format>(w.all), 768, tokens);
  tokens[768 + 700] = sy::bfloat16(std::numeric_limits<float>::quiet_NaN());
  for (auto const& of : kernels) {
    std::vector<float> const got = products(of, operand_of<format>(w.all), 768, tokens);
    for (std::size_t i = 0; i < got.size(); ++i) {
      CHECK((i / 9 == 1 ? std::isnan(got[i]) : got[i] == expected[i]));
    }
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
