// A format of one's own for quantised weights: GGUF's q5_0, which the library does not have. A block is a struct; products on every
// backend read it as it is, and `quantise` makes it of floats.
#include <switchyard/expert/stored_as.hpp>
#include <switchyard/quantised/blocks.hpp>
#include <switchyard/quantised/quantise.hpp>
#include <switchyard/switchyard.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

namespace sy = switchyard;

/// d, then the fifth bits of 32 codes, then their lower four, the first 16 of them in the low halves of bytes; 16 is zero.
struct q5_0 {
  static constexpr char const* name = "q5_0";
  static constexpr int weights = 32, bytes = 22;

  SWITCHYARD_HD static void widen(std::uint8_t const* block, int first, int count, float* to) {
    float const d = sy::quantised::half_at(block);
    for (int i = 0; i < count; ++i) {
      int const at = first + i, low = block[6 + at % 16] >> (at < 16 ? 0 : 4) & 15;
      int const high = block[2 + at / 8] >> at % 8 & 1;
      to[i] = d * static_cast<float>((low | high << 4) - 16);
    }
  }
};

/// The weight of the largest size has the code -16; found by `quantise`.
void narrow(q5_0, float const* weights, std::uint8_t* block) {
  namespace steps = sy::quantised::narrowing;
  float const d = steps::largest_signed(weights, 32) / -16.0f, inverse = steps::inverse(d);
  for (int i = 0; i < q5_0::bytes; ++i) block[i] = 0;
  steps::put_half(d, block);
  for (int i = 0; i < 32; ++i) {
    int const code = steps::clamped(steps::nearest(weights[i] * inverse) + 16, 0, 31);
    block[6 + i % 16] = static_cast<std::uint8_t>(block[6 + i % 16] | (code & 15) << (i < 16 ? 0 : 4));
    block[2 + i / 8] = static_cast<std::uint8_t>(block[2 + i / 8] | code >> 4 << i % 8);
  }
}

using format = sy::quantised::block_matrix<q5_0>;
constexpr sy::shape dims{.hidden = 128, .intermediate = 64, .experts = 4, .top_k = 2};
using dense_expert = sy::expert::gated_mlp<sy::silu>;
template <class Expert>
using layer_of = sy::layer<dims, sy::router::softmax_top_k, sy::capacity::dropless, Expert>;
using stored = layer_of<sy::expert::stored_as<dense_expert, format>>;
using dense = layer_of<dense_expert>;

int main() {
  constexpr int tokens = 5, matrix = dims.experts * dims.intermediate * dims.hidden;
  std::minstd_rand random(1);
  auto const numbers = [&](std::size_t count) {
    std::vector<float> result(count);
    for (float& value : result) value = 0.2f * static_cast<float>(random()) / static_cast<float>(random.max()) - 0.1f;
    return result;
  };
  auto const x = numbers(tokens * dims.hidden), router = numbers(dims.experts * dims.hidden), w = numbers(matrix);
  auto const in = sy::quantised::quantise<format>(w.data(), dims.experts, dims.intermediate, dims.hidden);
  auto const out = sy::quantised::quantise<format>(w.data(), dims.experts, dims.hidden, dims.intermediate);

  std::vector<float> y(x.size()), expected(x.size());
  std::vector<std::byte> scratch(stored::workspace_bytes(tokens) + dense::workspace_bytes(tokens));
  stored::forward({.tokens = stored::rows(x.data(), tokens),
                   .weights = {.router = {.weight = router.data()},
                               .gate_proj = in.view(),
                               .up_proj = in.view(),
                               .down_proj = out.view()},
                   .output = stored::rows(y.data(), tokens),
                   .workspace = scratch});
  dense::forward({.tokens = dense::rows(x.data(), tokens),
                  .weights = {.router = {.weight = router.data()},
                              .gate_proj = dense::in_proj(w.data()),
                              .up_proj = dense::in_proj(w.data()),
                              .down_proj = dense::out_proj(w.data())},
                  .output = dense::rows(expected.data(), tokens),
                  .workspace = scratch});
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    difference += std::pow(double{y[i]} - double{expected[i]}, 2);
    size += std::pow(double{expected[i]}, 2);
  }
  double const error = std::sqrt(difference / size);
  std::printf("%s: %.2f bits a weight, output within %.1f %% of that of float weights\n",
              sy::describe<stored>().c_str(), 8.0 * static_cast<double>(in.bytes()) / matrix, 100.0 * error);
  return error > 0.001 && error < 0.1 ? 0 : 1;
}
