// Omni-router: the model owns one router weight, and every layer routes by it. Each layer still computes the logits
// from its own tokens, so a token may take another expert in the next layer.
#include <switchyard/switchyard.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

namespace sy = switchyard;

using omni = sy::layer<sy::shape{.hidden = 32, .intermediate = 64, .experts = 4, .top_k = 1},
                       sy::router::shared<sy::router::switch_top1>, sy::capacity::dropless, sy::expert::mlp<sy::relu>>;

std::vector<float> numbers(std::size_t count) {
  static std::minstd_rand random(1);
  std::vector<float> result(count);
  for (float& value : result) value = static_cast<float>(random()) / static_cast<float>(random.max()) - 0.5f;
  return result;
}

int main() {
  constexpr int layers = 3, tokens = 6, hidden = omni::dims.hidden, intermediate = omni::dims.intermediate;
  constexpr int experts = omni::dims.experts;
  auto const router = numbers(experts * hidden);  // the model's
  auto const up = numbers(layers * experts * intermediate * hidden);
  auto const down = numbers(layers * experts * hidden * intermediate);
  auto residual = numbers(tokens * hidden);
  std::vector<float> added(tokens * hidden), logits(tokens * experts);
  std::vector<std::int32_t> chosen(tokens);
  std::vector<std::byte> scratch(omni::workspace_bytes(tokens));  // one for all layers: they run one by one
  bool right = true;

  for (int layer = 0; layer < layers; ++layer) {
    int const first = layer * experts * intermediate * hidden;
    // `weights` has no router to set here: `.weights = {.router = ...}` would not compile.
    omni::forward(
        {.tokens = omni::rows(residual.data(), tokens),
         .weights = {.up_proj = omni::in_proj(up.data() + first), .down_proj = omni::out_proj(down.data() + first)},
         .output = omni::rows(added.data(), tokens),
         .workspace = scratch,
         .shared_router = {.weight = router.data()},
         .decisions = {.experts = chosen.data()},
         .report = {.logits = logits.data()}});
    std::printf("layer %d sends the tokens to experts", layer);
    for (int token = 0; token < tokens; ++token) {
      std::printf(" %d", chosen[token]);
      float logit = 0.0f;
      for (int i = 0; i < hidden; ++i) logit += router[chosen[token] * hidden + i] * residual[token * hidden + i];
      float const difference = logit - logits[token * experts + chosen[token]];
      right = right && difference > -1e-4f && difference < 1e-4f;
    }
    std::printf("\n");
    for (int i = 0; i < tokens * hidden; ++i) residual[i] += added[i];
  }
  // The router is the model's, so a layer's parameters do not count it.
  right = right && sy::costs<omni>(tokens).parameters == 2 * experts * hidden * intermediate;
  return right ? 0 : 1;
}
