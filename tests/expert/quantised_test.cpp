#include <switchyard/core/pack_masked.hpp>
#include <switchyard/expert/stored_as.hpp>
#include <switchyard/quantised/any_of.hpp>
#include <switchyard/quantised/blocks.hpp>
#include <switchyard/quantised/grouped.hpp>
#include <switchyard/quantised/scaled.hpp>
#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "catch.hpp"
#include "support/random_numbers.hpp"
#include "support/said.hpp"

namespace sy = switchyard;
namespace q = sy::quantised;

namespace {

constexpr sy::shape dims{.hidden = 256, .intermediate = 64, .experts = 3, .top_k = 2};
template <class Expert>
using layer_of = sy::layer<dims, sy::router::softmax_top_k, sy::capacity::dropless, Expert>;
// As in a file whose inner width is no whole block of the one format.
using formats = q::any_of<q::block_matrix<q::q4_K>, q::mxfp4, q::gptq>;
using stored = layer_of<sy::expert::stored_as<sy::expert::gated_mlp<sy::silu>, formats>>;
using dense = layer_of<sy::expert::gated_mlp<sy::silu>>;

struct stored_weights {
  std::vector<std::uint8_t> blocks, codes, scales;
  std::vector<std::uint32_t> words, zeros;
  std::vector<sy::half> group_scales;
  formats gate, up, down;

  stored_weights() {
    std::mt19937 random(1);
    auto const fill = [&](auto& to, std::size_t count) {
      to.resize(count);
      for (auto& value : to) value = static_cast<std::remove_reference_t<decltype(value)>>(random());
    };
    fill(blocks, std::size_t{3} * 64 * 144);
    for (std::size_t b = 0; b < blocks.size(); b += 144) {  // d and dmin of sensible sizes
      for (std::size_t i : {0u, 2u}) {
        sy::half const scale(1e-4f + 1e-6f * static_cast<float>(random() % 100));
        blocks[b + i] = static_cast<std::uint8_t>(scale.bits & 255);
        blocks[b + i + 1] = static_cast<std::uint8_t>(scale.bits >> 8);
      }
    }
    fill(codes, std::size_t{3} * 64 * 128);
    for (std::size_t i = 0; i < std::size_t{3} * 64 * 8; ++i)
      scales.push_back(static_cast<std::uint8_t>(120 + random() % 4));
    fill(words, std::size_t{3} * 8 * 256);
    fill(zeros, std::size_t{3} * 32);
    for (std::size_t i = 0; i < std::size_t{3} * 256; ++i) {
      group_scales.emplace_back(1e-3f + 1e-5f * static_cast<float>(random() % 100));
    }
    gate = q::block_matrix<q::q4_K>::packed(blocks.data(), 64, 256);
    up = q::mxfp4{codes.data(), scales.data(), 64, 256};
    down = q::gptq{words.data(), zeros.data(), group_scales.data(), 256, 64};
  }
};

std::vector<float> widened(formats const& matrix) {
  std::vector<float> result;
  float weights[formats::granule];
  for (int e = 0; e < dims.experts; ++e) {
    for (int row = 0; row < matrix.rows; ++row) {
      for (int column = 0; column < matrix.columns; column += formats::granule) {
        matrix.read(e, row, column, formats::granule, weights);
        result.insert(result.end(), weights, weights + formats::granule);
      }
    }
  }
  return result;
}

}  // namespace

TEST_CASE("quantised experts compute what the same weights as floats do", "[expert]") {
  stored_weights const of;
  std::vector<float> const gate = widened(of.gate), up = widened(of.up), down = widened(of.down);
  support::random_numbers random(3);
  for (int tokens : {1, 7, 90}) {
    CAPTURE(tokens);
    std::vector<float> x(static_cast<std::size_t>(tokens) * 256), router(3 * 256), y(x.size()), expected(x.size());
    for (float& value : x) value = static_cast<float>(random.normal());
    for (float& value : router) value = static_cast<float>(0.1 * random.normal());
    std::vector<std::byte> scratch(std::max(stored::workspace_bytes(tokens), dense::workspace_bytes(tokens)));
    for (sy::instruction_set instructions : {sy::instruction_set::portable, sy::instruction_set::automatic}) {
      stored::forward({.tokens = stored::rows(x.data(), tokens),
                       .weights = {.router = {.weight = router.data()},
                                   .gate_proj = of.gate,
                                   .up_proj = of.up,
                                   .down_proj = of.down},
                       .output = stored::rows(y.data(), tokens),
                       .workspace = scratch},
                      {.instructions = instructions});
      dense::forward({.tokens = dense::rows(x.data(), tokens),
                      .weights = {.router = {.weight = router.data()},
                                  .gate_proj = dense::in_proj(gate.data()),
                                  .up_proj = dense::in_proj(up.data()),
                                  .down_proj = dense::out_proj(down.data())},
                      .output = dense::rows(expected.data(), tokens),
                      .workspace = scratch},
                     {.instructions = instructions});
      double difference = 0, size = 0;
      for (std::size_t i = 0; i < y.size(); ++i) {
        difference += std::pow(double{y[i]} - double{expected[i]}, 2);
        size += std::pow(double{expected[i]}, 2);
      }
      CHECK(size > 0);
      CHECK(std::sqrt(difference / size) < 1e-6);
    }
  }
}

TEST_CASE("a quantised centre and residuals compute what their restored sums do", "[expert][residual]") {
  using base = sy::expert::stored_as<sy::expert::gated_mlp<sy::silu>, q::block_matrix<q::q8_0>>;
  using layer = layer_of<sy::expert::residual<base>>;
  constexpr std::size_t size = std::size_t{256} * 64, bytes = size / 32 * 34;
  support::random_numbers random(4);
  struct projection {
    std::vector<std::uint8_t> blocks;
    sy::masked_arrays<float> change;
    std::vector<float> restored;
  };
  auto const make = [&](int rows, int columns) {
    std::vector<std::uint8_t> blocks(bytes), kept;
    for (std::size_t i = 0; i < bytes; ++i) {
      blocks[i] = static_cast<std::uint8_t>(i % 34 == 0 ? random.below(256) : i % 34 == 1 ? 0x18 : random.below(256));
    }
    std::vector<float> change;
    for (std::size_t i = 0; i < 3 * size; ++i) {
      kept.push_back(random.below(4) == 0);
      change.push_back(kept.back() != 0 ? 0.05f * static_cast<float>(random.normal()) : 0.0f);
    }
    projection result{blocks, sy::pack_masked<float>(change.data(), kept.data(), 3, rows, columns), change};
    auto const centre = q::block_matrix<q::q8_0>::packed(blocks.data(), rows, columns);
    for (std::size_t i = 0; i < 3 * size; i += 32) {
      float weights[32];
      std::size_t const at = i % size;
      centre.read(0, static_cast<int>(at / columns), static_cast<int>(at % columns), 32, weights);
      for (std::size_t j = 0; j < 32; ++j) result.restored[i + j] += weights[j];
    }
    return result;
  };
  projection const gate = make(64, 256), up = make(64, 256), down = make(256, 64);
  auto const of = [](projection const& p, int rows, int columns) {
    return q::block_matrix<q::q8_0>::packed(p.blocks.data(), rows, columns);
  };
  for (int tokens : {1, 7, 90}) {
    CAPTURE(tokens);
    std::vector<float> x(static_cast<std::size_t>(tokens) * 256), router(3 * 256), y(x.size()), expected(x.size());
    for (float& value : x) value = static_cast<float>(random.normal());
    for (float& value : router) value = static_cast<float>(0.1 * random.normal());
    std::vector<std::byte> scratch(std::max(layer::workspace_bytes(tokens), dense::workspace_bytes(tokens)));
    layer::args args{.tokens = layer::rows(x.data(), tokens),
                     .weights = {.router = {.weight = router.data()},
                                 .gate_proj = layer::in_proj(of(gate, 64, 256), gate.change.view()),
                                 .up_proj = layer::in_proj(of(up, 64, 256), up.change.view()),
                                 .down_proj = layer::out_proj(of(down, 256, 64), down.change.view())},
                     .output = layer::rows(y.data(), tokens),
                     .workspace = scratch};
    layer::forward(args);
    dense::forward({.tokens = dense::rows(x.data(), tokens),
                    .weights = {.router = {.weight = router.data()},
                                .gate_proj = dense::in_proj(gate.restored.data()),
                                .up_proj = dense::in_proj(up.restored.data()),
                                .down_proj = dense::out_proj(down.restored.data())},
                    .output = dense::rows(expected.data(), tokens),
                    .workspace = scratch});
    double difference = 0, squares = 0;
    for (std::size_t i = 0; i < y.size(); ++i) {
      difference += std::pow(double{y[i]} - double{expected[i]}, 2);
      squares += std::pow(double{expected[i]}, 2);
    }
    CHECK(squares > 0);
    CHECK(std::sqrt(difference / squares) < 1e-6);
    args.weights.up_proj.base.of.rows = 63;
    CHECK(support::said([&] { layer::forward(args); }) ==
          "switchyard: layer::forward, weights.up_proj.base, rows x columns: expected 64 x 256, got 63 x 256");
  }
}

TEST_CASE("quantised experts of other sizes are refused", "[expert]") {
  stored_weights const of;
  std::vector<float> x(256), router(3 * 256);
  std::vector<std::byte> scratch(stored::workspace_bytes(1));
  auto const said = [&](formats const& gate, formats const& down) {
    std::vector<float> y(256);
    return support::said([&] {
      stored::forward(
          {.tokens = stored::rows(x.data(), 1),
           .weights = {.router = {.weight = router.data()}, .gate_proj = gate, .up_proj = of.up, .down_proj = down},
           .output = stored::rows(y.data(), 1),
           .workspace = scratch});
    });
  };
  CHECK(said(of.gate, of.down).empty());
  CHECK(said(of.down, of.down) ==
        "switchyard: layer::forward, weights.gate_proj, rows x columns: expected 64 x 256, got 256 x 64");
  CHECK(said(formats(), of.down) ==
        "switchyard: layer::forward, weights.gate_proj.matrix: expected one of the formats, got a null pointer");
  CHECK(said(q::mxfp4{of.codes.data(), nullptr, 64, 256}, of.down) ==
        "switchyard: layer::forward, weights.gate_proj.scales: expected [experts, rows, columns / 32] bytes, got a "
        "null pointer");
  CHECK(said(of.gate, q::block_matrix<q::q4_K>::packed(of.blocks.data(), 256, 64)) ==
        "switchyard: layer::forward, weights.down_proj: expected rows of whole blocks, 256 weights each (store this "
        "projection "
        "in another format), got 64 columns");

  auto const strided = [&](std::int64_t expert_stride, std::int64_t row_stride) {
    return said(q::block_matrix<q::q4_K>{of.blocks.data(), expert_stride, row_stride, 64, 256}, of.down);
  };
  CHECK(strided(64 * 144, 144).empty());
  CHECK(strided(64 * 144, 143) ==
        "switchyard: layer::forward, weights.gate_proj.row_stride: expected at least 144, got 143");
  CHECK(strided(64 * 144, -144) ==
        "switchyard: layer::forward, weights.gate_proj.row_stride: expected at least 144, got -144");
  CHECK(strided(0, 144) ==
        "switchyard: layer::forward, weights.gate_proj.expert_stride: expected at least 9216, got 0");
  CHECK(said(q::mxfp4{of.codes.data(), of.scales.data(), 64, 256, 0}, of.down) ==
        "switchyard: layer::forward, weights.gate_proj.row_stride: expected at least 1, got 0");
}

TEST_CASE("layers on blocks of any bytes read nothing beside them", "[expert]") {
  // What the address sanitizer watches: arrays have exactly the bytes of three experts.
  stored_weights of;
  std::mt19937 random(5);
  auto const fill = [&](auto& numbers) {
    auto* const bytes = reinterpret_cast<std::uint8_t*>(numbers.data());
    for (std::size_t i = 0; i < numbers.size() * sizeof(numbers[0]); ++i)
      bytes[i] = static_cast<std::uint8_t>(random());
  };
  fill(of.blocks), fill(of.codes), fill(of.scales), fill(of.words), fill(of.zeros), fill(of.group_scales);
  std::vector<float> x(40 * 256, 0.5f), router(3 * 256), y(x.size(), 7.0f);
  for (std::size_t i = 0; i < router.size(); ++i) router[i] = static_cast<float>(i % 7) * 1e-3f;
  std::vector<std::byte> scratch(stored::workspace_bytes(40));
  for (int tokens : {1, 40}) {
    for (sy::instruction_set instructions : {sy::instruction_set::portable, sy::instruction_set::automatic}) {
      stored::forward({.tokens = stored::rows(x.data(), tokens),
                       .weights = {.router = {.weight = router.data()},
                                   .gate_proj = of.gate,
                                   .up_proj = of.up,
                                   .down_proj = of.down},
                       .output = stored::rows(y.data(), tokens),
                       .workspace = scratch},
                      {.instructions = instructions});
      CHECK(y[0] != 7.0f);
    }
  }
}
