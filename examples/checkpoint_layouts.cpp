// Checkpoints store gate and up projections in several ways. A layer reads each where it stands: strides say where.
#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <random>
#include <vector>

namespace sy = switchyard;

using layer = sy::layer<sy::shape{.hidden = 24, .intermediate = 40, .experts = 4, .top_k = 2},
                        sy::router::softmax_top_k, sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>>;
using view = sy::weight_view<float>;

std::vector<float> numbers(std::size_t count) {
  static std::minstd_rand random(1);
  std::vector<float> result(count);
  for (float& value : result) value = static_cast<float>(random()) / static_cast<float>(random.max()) - 0.5f;
  return result;
}

int main() {
  constexpr int tokens = 9, experts = layer::dims.experts;
  constexpr int hidden = layer::dims.hidden, intermediate = layer::dims.intermediate;
  auto const x = numbers(tokens * hidden), router = numbers(experts * hidden);
  auto const gate = numbers(experts * intermediate * hidden), up = numbers(gate.size()), down = numbers(gate.size());

  auto const run = [&](view gate_proj, view up_proj) {
    std::vector<float> y(tokens * hidden);
    std::vector<std::byte> scratch(layer::workspace_bytes(tokens));
    layer::forward({.tokens = layer::rows(x.data(), tokens),
                    .weights = {.router = {.weight = router.data()},
                                .gate_proj = gate_proj,
                                .up_proj = up_proj,
                                .down_proj = layer::out_proj(down.data())},
                    .output = layer::rows(y.data(), tokens),
                    .workspace = scratch});
    return y;
  };
  // Two tensors, the usual way: Mixtral, Qwen3, OLMoE.
  std::vector<float> const expected = run(layer::in_proj(gate.data()), layer::in_proj(up.data()));

  // One tensor `fused`, filled as a checkpoint of that layout has it.
  std::vector<float> fused(2 * gate.size());
  bool right = true;
  auto const check = [&](char const* name, sy::gate_up_order order, sy::storage stored) {
    auto const [fused_gate, fused_up] = sy::split_gate_up(fused.data(), intermediate, hidden, order, stored);
    for (int e = 0; e < experts; ++e) {
      for (int feature = 0; feature < intermediate; ++feature) {
        bool const interleaved = order == sy::gate_up_order::interleaved;
        int const gate_row = interleaved ? 2 * feature : feature;
        int const up_row = interleaved ? 2 * feature + 1 : intermediate + feature;
        for (int i = 0; i < hidden; ++i) {
          auto const place = [&](int row) {
            int const in_matrix = stored == sy::storage::output_major ? row * hidden + i : i * 2 * intermediate + row;
            return 2 * e * intermediate * hidden + in_matrix;
          };
          int const from = (e * intermediate + feature) * hidden + i;
          fused[place(gate_row)] = gate[from];
          fused[place(up_row)] = up[from];
        }
      }
    }
    std::vector<float> const y = run(fused_gate, fused_up);
    float furthest = 0.0f;
    for (std::size_t i = 0; i < y.size(); ++i) furthest = std::max(furthest, std::abs(y[i] - expected[i]));
    std::printf("%-60s %g apart\n", name, furthest);
    right = right && furthest < 1e-5f;
  };
  using enum sy::gate_up_order;
  using enum sy::storage;
  check("[experts, gate then up, hidden]: Granite, Mixtral fused", concatenated, output_major);
  check("[experts, gate and up in turns, hidden]", interleaved, output_major);
  check("[experts, hidden, gate then up]: Llama 4", concatenated, input_major);
  check("[experts, hidden, gate and up in turns]: gpt-oss", interleaved, input_major);
  return right ? 0 : 1;
}
