#include <switchyard/quantised/any_of.hpp>
#include <switchyard/quantised/quantise.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "catch.hpp"
#include "safetensors.hpp"
#include "support/random_numbers.hpp"
#include "support/said.hpp"

namespace sy = switchyard;
namespace q = sy::quantised;
using sy::bfloat16;

namespace {

using formats = std::tuple<q::block_matrix<q::q8_0>, q::block_matrix<q::q4_0>, q::block_matrix<q::mxfp4_halves>,
                           q::block_matrix<q::q4_K>, q::block_matrix<q::q6_K>, q::int8_channel<float>,
                           q::int8_channel<bfloat16>, q::fp8_tensor<float>, q::fp8_tensor<bfloat16>, q::fp8_block,
                           q::mxfp4, q::nvfp4, q::nvfp4_modelopt, q::int4_packed, q::gptq, q::awq>;
template <class Body>
void for_each_format(Body body) {
  std::apply([&](auto... format) { (body(format), ...); }, formats{});
}

constexpr int experts = 2, rows = 136, columns = 256;  // more rows than a square of fp8_block has

/// Small ones as a trained layer's, some of other sizes, a row of zeros, and numbers that lie between codes.
std::vector<float> weights_of_all_kinds() {
  support::random_numbers random(20);
  std::vector<float> w(std::size_t{experts} * rows * columns);
  for (float& weight : w) weight = static_cast<float>(0.02 * random.normal());
  for (std::size_t i = 0; i < 8 * columns; ++i) {
    w[i] *= std::ldexp(1.0f, static_cast<int>(i / columns) * 4 - 20);                                  // rows 0 to 7
    w[8 * columns + i] = i % 32 < 16 ? 0.0f : static_cast<float>(static_cast<int>(i % 29) - 14) / 16;  // 8 to 15
    w[16 * columns + i] = std::ldexp(i % 3 == 0 ? -1.0f : 1.0f, static_cast<int>(i * i % 13) - 9);     // 16 to 23
  }
  std::fill_n(w.begin() + 24 * columns, columns, 0.0f);
  return w;
}

template <class Format>
std::vector<float> widened(Format const& matrix, int of_experts) {
  std::vector<float> result;
  float weights[Format::granule];
  for (int line = 0; line < of_experts * matrix.rows; ++line) {
    for (int column = 0; column < matrix.columns; column += Format::granule) {
      int const count = std::min(Format::granule, matrix.columns - column);
      matrix.read(line / matrix.rows, line % matrix.rows, column, count, weights);
      result.insert(result.end(), weights, weights + count);
    }
  }
  return result;
}

template <class Owned>
std::vector<std::uint8_t> bytes_of(Owned const& made) {
  std::vector<std::uint8_t> result;
  std::apply(
      [&](auto const&... array) {
        auto const append = [&](auto const& numbers) {
          auto const* const first = reinterpret_cast<std::uint8_t const*>(numbers.data());
          result.insert(result.end(), first, first + numbers.size() * sizeof(numbers[0]));
        };
        (append(array), ...);
      },
      made.arrays);
  return result;
}

std::uint64_t hash_of(std::vector<std::uint8_t> const& bytes) {  // FNV-1a
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (std::uint8_t byte : bytes) hash = (hash ^ byte) * 0x100000001b3u;
  return hash;
}

/// Root of the mean square of what quantising changes, over that of the weights.
template <class Format>
double relative_error(std::vector<float> const& w, int of_rows, int of_columns) {
  int const matrices = static_cast<int>(w.size()) / (of_rows * of_columns);
  auto const made = q::quantise<Format>(w.data(), matrices, of_rows, of_columns);
  std::vector<float> const got = widened(made.view(), matrices);
  double error = 0, size = 0;
  for (std::size_t i = 0; i < w.size(); ++i) {
    error += std::pow(double{got[i]} - double{w[i]}, 2);
    size += std::pow(double{w[i]}, 2);
  }
  return std::sqrt(error / size);
}

}  // namespace

TEST_CASE("quantised bytes are those of the published quantisers", "[quantised]") {
  // Of the package gguf (gguf.quants), for the K formats of ggml's ggml-quants.c, compiled without contraction, and for the others of
  // the published formulas in numpy, but for GPTQ and AWQ, where only what the arrays mean is published.
  std::vector<float> const w = weights_of_all_kinds();
  std::vector<std::uint64_t> got;
  for_each_format([&]<class Format>(Format) {
    got.push_back(hash_of(bytes_of(q::quantise<Format>(w.data(), experts, rows, columns))));
  });
  CHECK(got ==
        std::vector<std::uint64_t>{0x4c2b2bac0a45e266u, 0x56e58539fa996699u, 0xfde79ad4f527c362u, 0x28e2da17751a47bbu,
                                   0x776cf7c2373b1afeu, 0x1e28ca69f110998eu, 0x30499ca0cd0bf50du, 0xfb1bd53f52f3d917u,
                                   0x80d7cf0e3e39745fu, 0x3fe17f43c4e1bd49u, 0xe84e5cbb91f6d9c5u, 0x81e5c48b0d0be84fu,
                                   0x857d8b5df25edc88u, 0x2f8d1df3bbc90fc1u, 0x67e29a8d806779ebu, 0x66123b75d2198a36u});
}

TEST_CASE("a weight changes by half a step of its scale at most", "[quantised]") {
  std::vector<float> w = weights_of_all_kinds();
  std::fill_n(w.begin(), 5 * columns, 0.0f);  // whose scales are subnormal halves
  // Neighbouring weights of a row that share a scale, and the largest change: a part of their largest size, and of the weight itself.
  struct bound {
    int group;
    float of_largest, of_weight;
  };
  constexpr float half_rounding = 0x1p-11f, bfloat16_rounding = 0x1p-8f;
  auto const check = [&]<class Format>(Format, bound const& allowed) {
    std::vector<float> const got = widened(q::quantise<Format>(w.data(), experts, rows, columns).view(), experts);
    float worst = 0;
    for (std::size_t first = 0; first < w.size(); first += static_cast<std::size_t>(allowed.group)) {
      float largest = 0x1p-30f;
      for (int i = 0; i < allowed.group; ++i) largest = std::max(largest, std::fabs(w[first + i]));
      for (std::size_t i = first; i < first + allowed.group; ++i) {
        float const most = allowed.of_largest * largest + allowed.of_weight * std::fabs(w[i]);
        worst = std::max(worst, std::fabs(got[i] - w[i]) / most);
      }
    }
    CAPTURE(Format::name, worst);
    CHECK(worst <= 1.0f);
    CHECK(worst > 0.5f);  // the bound says something
  };
  check(q::block_matrix<q::q8_0>{}, {32, 1.0f / 254 + half_rounding, 0});
  check(q::block_matrix<q::q4_0>{}, {32, 1.0f / 8 + half_rounding, 0});  // the other end has no code of its own
  check(q::block_matrix<q::mxfp4_halves>{}, {32, 1.0f / 4, 0});          // almost 8 becomes 6
  check(q::int8_channel<float>{}, {columns, 1.0f / 255, 1e-6f});
  check(q::int8_channel<bfloat16>{}, {columns, 1.0f / 255 + bfloat16_rounding, 0});
  check(q::mxfp4{}, {32, 1.0f / 5, 0});
  check(q::int4_packed{}, {32, 1.0f / 15 + bfloat16_rounding, 0});
  check(q::gptq{}, {128, 1.0f / 15 + half_rounding, 0});
  check(q::awq{}, {128, 1.0f / 15 + 2 * half_rounding, 0});
  // Of fp8 the weight itself counts, and where that is small the scale that its matrix or square shares.
  check(q::fp8_tensor<float>{}, {experts * rows * columns, 0x1p-10f / 448, 1.0f / 16});
  check(q::fp8_block{}, {experts * rows * columns, 0x1p-10f / 448, 1.0f / 16});
}

TEST_CASE("what is quantised already stays as it is", "[quantised]") {
  std::vector<float> w = weights_of_all_kinds();
  std::fill_n(w.begin(), 5 * columns, 0.0f);
  auto const check = [&]<class Format>(Format) {
    CAPTURE(Format::name);
    auto const once = q::quantise<Format>(w.data(), experts, rows, columns);
    std::vector<float> const floats = widened(once.view(), experts);
    bool const same = bytes_of(q::quantise<Format>(floats.data(), experts, rows, columns)) == bytes_of(once);
    CHECK(same);
  };
  check(q::block_matrix<q::q8_0>{});
  check(q::block_matrix<q::q4_0>{});
  check(q::fp8_tensor<float>{});
}

TEST_CASE("formats change the demo's weights and normal numbers as much as their bits say", "[quantised]") {
  support::random_numbers random(4);
  std::vector<float> normal(std::size_t{64} * 1024), trained;
  for (float& weight : normal) weight = static_cast<float>(random.normal());
  safetensors::file const demo = safetensors::read(SWITCHYARD_TEST_DATA "/../../examples/tiny_lm/tiny_lm.safetensors");
  std::vector<char> const& bytes = demo.at("blocks.1.moe.experts.down_proj").bytes;
  for (std::size_t i = 0; i < 65536; i += 2) {
    bfloat16 weight;
    std::memcpy(&weight.bits, bytes.data() + i, 2);
    trained.push_back(static_cast<float>(weight));
  }
  std::vector<double> const most{0.0055, 0.088,  0.120, 0.073, 0.0182, 0.0078, 0.0078, 0.0270,
                                 0.0270, 0.0270, 0.118, 0.098, 0.098,  0.097,  0.113,  0.103};
  std::size_t number = 0;
  for_each_format([&]<class Format>(Format) {
    double const allowed = most[number++];
    CAPTURE(Format::name);
    for (double error : {relative_error<Format>(normal, 64, 1024), relative_error<Format>(trained, 64, 256)}) {
      CHECK(error < allowed);
      CHECK(error > 0.85 * allowed);
    }
  });
}

TEST_CASE("elements and threads do not show in what is quantised", "[quantised]") {
  std::vector<float> w = weights_of_all_kinds();
  std::vector<bfloat16> elements;
  for (float& weight : w) {
    elements.emplace_back(weight);
    weight = static_cast<float>(elements.back());
  }
  for_each_format([&]<class Format>(Format) {
    CAPTURE(Format::name);
    auto const of_floats = q::quantise<Format>(w.data(), experts, rows, columns, {.threads = 1});
    bool const same =
        bytes_of(q::quantise<Format>(elements.data(), experts, rows, columns, {.threads = 3})) == bytes_of(of_floats);
    CHECK(same);
    CHECK(of_floats.bytes() == static_cast<std::int64_t>(bytes_of(of_floats).size()));
  });
}

TEST_CASE("weights that cannot be quantised are refused", "[quantised]") {
  std::vector<float> w(std::size_t{2} * 8 * 256, 1.0f);
  auto const said = [&]<class Format>(Format, int of_rows, int of_columns) {
    return support::said([&] { q::quantise<Format>(w.data(), 2, of_rows, of_columns); });
  };
  using q8_0 = q::block_matrix<q::q8_0>;
  CHECK(said(q8_0{}, 8, 256).empty());
  CHECK(
      said(q8_0{}, 8, 33) ==
      "switchyard: quantise, weights: expected rows of whole blocks, 32 weights each (store this projection in another "
      "format), got 33 columns");
  CHECK(said(q::awq{}, 7, 256) ==
        "switchyard: quantise, weights: expected columns of whole words, 8 weights each (store this projection in "
        "another "
        "format), got 7 rows");
  CHECK(said(q8_0{}, 0, 32) ==
        "switchyard: quantise, weights: expected at least one matrix of at least one weight, got 2 x 0 x 32");
  w[2048 + 3 * 256 + 5] = std::numeric_limits<float>::quiet_NaN();
  CHECK(said(q8_0{}, 8, 256) ==
        "switchyard: quantise, weights: expected finite weights, got NaN in expert 1, row 3, column 5");
  w[2048 + 3 * 256 + 5] = 1e30f;  // whose scale no half can hold
  CHECK(said(q8_0{}, 8, 256) ==
        "switchyard: quantise, what became of the weights: expected finite weights, got NaN in expert 1, row 3, column "
        "0");
  CHECK(said(q::mxfp4{}, 8, 256).empty());
}

TEST_CASE("weights are as large and as small as floats may be", "[quantised]") {
  for (float size : {std::numeric_limits<float>::max(), std::numeric_limits<float>::min(),
                     std::numeric_limits<float>::denorm_min(), 1e-30f}) {
    CAPTURE(size);
    std::vector<float> w(std::size_t{8} * 256, size);
    for (std::size_t i = 0; i < w.size(); i += 3) w[i] = -size / 2;
    for_each_format([&]<class Format>(Format) {
      CAPTURE(Format::name);
      std::string const said = support::said([&] { q::quantise<Format>(w.data(), 1, 8, 256); });
      CHECK((said.empty() || size > 1.0f));  // finite, or refused
    });
  }
}

TEST_CASE("a weight that is not finite is found before it is used", "[quantised]") {
  std::vector<float> const w = weights_of_all_kinds();
  auto made = q::quantise<q::int8_channel<float>>(w.data(), experts, rows, columns);
  auto const said = [&](auto const& matrix) {
    return support::said([&] { q::check_weights(matrix, experts, "layers.3, gate_proj"); });
  };
  CHECK(said(made.view()).empty());
  made.array<1>()[rows + 7] = std::numeric_limits<float>::infinity();
  made.array<1>()[rows + 9] = std::numeric_limits<float>::quiet_NaN();
  std::string const answer = said(q::any_of<q::int8_channel<float>, q::fp8_block>(made.view()));
  CHECK(answer.starts_with("switchyard: layers.3, gate_proj: expected finite weights, got "));
  CHECK(answer.ends_with(" in expert 1, row 7, column 0"));

  auto codes = q::quantise<q::fp8_block>(w.data(), experts, rows, columns);
  CHECK(said(codes.view()).empty());
  codes.array<0>()[5 * columns + 33] = 0xff;
  CHECK(said(codes.view()) ==
        "switchyard: layers.3, gate_proj: expected finite weights, got NaN in expert 0, row 5, column 33");
  auto powers = q::quantise<q::mxfp4>(w.data(), experts, rows, columns);
  powers.array<1>()[2 * (columns / 32) + 1] = 255;
  CHECK(said(powers.view()) ==
        "switchyard: layers.3, gate_proj: expected finite weights, got NaN in expert 0, row 2, column 32");
}

TEST_CASE("blocks of any bytes are read and nothing beside them", "[quantised]") {
  // What the address sanitizer watches: arrays are as long as the formats say, and not a byte longer.
  std::mt19937 random(9);
  std::vector<float> const zeros(std::size_t{2} * 136 * 256);
  for (int of_rows : {8, 136}) {
    int const of_columns = of_rows == 8 ? 512 : 256;
    for_each_format([&]<class Format>(Format) {
      CAPTURE(Format::name);
      auto made = q::quantise<Format>(zeros.data(), 2, of_rows, of_columns);
      std::apply(
          [&](auto&... array) {
            auto const fill = [&](auto& numbers) {
              auto* const bytes = reinterpret_cast<std::uint8_t*>(numbers.data());
              for (std::size_t i = 0; i < numbers.size() * sizeof(numbers[0]); ++i) {
                bytes[i] = static_cast<std::uint8_t>(random());
              }
            };
            (fill(array), ...);
          },
          made.arrays);
      Format const matrix = made.view();
      std::vector<float> const all = widened(matrix, 2);
      bool same = true;  // parts of a granule are the same numbers
      for (int line = 0; line < 2 * of_rows; ++line) {
        for (int column = 0, count; column < of_columns; column += count) {
          count = 1 + static_cast<int>(random() % Format::granule);
          count = std::min(count, Format::granule - column % Format::granule);
          float part[Format::granule];
          matrix.read(line / of_rows, line % of_rows, column, count, part);
          same = same && std::memcmp(part, all.data() + std::int64_t{line} * of_columns + column,
                                     sizeof(float) * static_cast<std::size_t>(count)) == 0;
        }
      }
      CHECK(same);
    });
  }
}
