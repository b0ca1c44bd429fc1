#include <switchyard/expert/stored_as.hpp>
#include <switchyard/quantised/any_of.hpp>
#include <switchyard/quantised/blocks.hpp>
#include <switchyard/quantised/grouped.hpp>
#include <switchyard/quantised/scaled.hpp>
#include <switchyard/switchyard.cuh>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <type_traits>
#include <vector>

#include "catch.hpp"
#include "device.cuh"

/// Quantised weights on the GPU. Stages of a tile have the widened weights as elements, so that results have the bits of dense ones.
namespace quantised_on_gpu {

namespace q = switchyard::quantised;
using switchyard::bfloat16;
using gated = switchyard::expert::gated_mlp<switchyard::silu>;
using formats = q::any_of<q::block_matrix<q::q4_K>, q::mxfp4, q::gptq>;
template <class Expert>
using layer_of = switchyard::layer<switchyard::shape{.hidden = 256, .intermediate = 64, .experts = 4, .top_k = 2},
                                   switchyard::router::softmax_top_k, switchyard::capacity::dropless, Expert,
                                   switchyard::backend::cuda, bfloat16>;
using stored = layer_of<switchyard::expert::stored_as<gated, formats>>;
using dense = layer_of<gated>;

/// A matrix as elements.
std::vector<bfloat16> widened(formats const& matrix) {
  std::vector<bfloat16> result;
  float weights[formats::granule];
  for (int line = 0; line < 4 * matrix.rows; ++line) {
    for (int column = 0; column < matrix.columns; column += formats::granule) {
      matrix.read(line / matrix.rows, line % matrix.rows, column, formats::granule, weights);
      for (float weight : weights) result.emplace_back(weight);
    }
  }
  return result;
}

}  // namespace quantised_on_gpu

TEST_CASE("on the GPU quantised experts give the bits of the same weights as elements", "[gpu][operand]") {
  using namespace quantised_on_gpu;
  if (!has_device()) return;
  std::mt19937 random(1);
  auto const drawn = [&]<class T>(T, std::size_t count) {
    std::vector<T> result(count);
    for (T& value : result) value = static_cast<T>(random());
    return result;
  };
  auto blocks = drawn(std::uint8_t{}, std::size_t{4} * 64 * 144);
  for (std::size_t b = 0; b < blocks.size(); b += 144) {  // d and dmin of 2^-13
    blocks[b] = blocks[b + 2] = 0;
    blocks[b + 1] = blocks[b + 3] = 0x08;
  }
  auto const codes = drawn(std::uint8_t{}, std::size_t{4} * 64 * 128);
  std::vector<std::uint8_t> scales(std::size_t{4} * 64 * 8, 121);
  scales[3] = 119;
  auto const words = drawn(std::uint32_t{}, std::size_t{4} * 8 * 256),
             zeros = drawn(std::uint32_t{}, std::size_t{4} * 32);
  std::vector<switchyard::half> const of_groups(std::size_t{4} * 256, switchyard::half(0.001f));
  auto const gate = [](std::uint8_t const* at) { return q::block_matrix<q::q4_K>::packed(at, 64, 256); };

  std::vector<float> router(std::size_t{4} * 256);
  for (float& value : router) value = static_cast<float>(random() % 200) * 0.001f - 0.1f;
  device_array<float> const on_router(router);
  device_array<std::uint8_t> const on_blocks(blocks), on_codes(codes), on_scales(scales);
  device_array<std::uint32_t> const on_words(words), on_zeros(zeros);
  device_array<switchyard::half> const on_groups(of_groups);
  device_array<bfloat16> const dense_gate(widened(gate(blocks.data()))),
      dense_up(widened(q::mxfp4{codes.data(), scales.data(), 64, 256})),
      dense_down(widened(q::gptq{words.data(), zeros.data(), of_groups.data(), 256, 64}));
  for (int tokens : {3, 150}) {
    CAPTURE(tokens);
    std::vector<bfloat16> x;
    for (int i = 0; i < tokens * 256; ++i) x.emplace_back(static_cast<float>(random() % 2000) * 0.001f - 1.0f);
    device_array<bfloat16> const on_x(x);
    auto const run = [&]<class Layer>(Layer, auto const& set) {
      device_array<bfloat16> y(x.size());
      std::size_t const bytes = Layer::workspace_bytes(tokens);
      device_array<std::byte> workspace(bytes);
      typename Layer::args args{};
      args.tokens = Layer::rows(on_x.data(), tokens);
      args.weights.router.weight = on_router.data();
      set(args.weights);
      args.output = Layer::rows(y.data(), tokens);
      args.workspace = {workspace.data(), bytes};
      Layer::forward(args);
      return y.copy_out();
    };
    auto const got = run(stored{}, [&](stored::weights& w) {
      w.gate_proj = gate(on_blocks.data());
      w.up_proj = q::mxfp4{on_codes.data(), on_scales.data(), 64, 256};
      w.down_proj = q::gptq{on_words.data(), on_zeros.data(), on_groups.data(), 256, 64};
    });
    auto const expected = run(dense{}, [&](dense::weights& w) {
      w.gate_proj = dense::in_proj(dense_gate.data());
      w.up_proj = dense::in_proj(dense_up.data());
      w.down_proj = dense::out_proj(dense_down.data());
    });
    REQUIRE(got.size() == expected.size());
    CHECK(std::memcmp(got.data(), expected.data(), got.size() * sizeof(bfloat16)) == 0);
    bool all_zero = true;
    for (bfloat16 value : got) all_zero = all_zero && value.bits % 0x8000u == 0;
    CHECK_FALSE(all_zero);
  }
}
