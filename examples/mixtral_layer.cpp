// The layer of Mixtral: each token visits the best two of eight gated experts. One layer of Mixtral 8x7B has 3 GB of
// weights, so this is a small one; the real one is sy::presets::mixtral_8x7b.
#include <switchyard/switchyard.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

namespace sy = switchyard;

using mixtral = sy::layer<sy::shape{.hidden = 64, .intermediate = 224, .experts = 8, .top_k = 2},
                          sy::router::softmax_top_k, sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>>;

// Stands in for a checkpoint.
std::vector<float> numbers(std::size_t count) {
  static std::minstd_rand random(1);
  std::vector<float> result(count);
  for (float& value : result) value = static_cast<float>(random()) / static_cast<float>(random.max()) - 0.5f;
  return result;
}

int main() {
  auto const router = numbers(8 * 64), gate = numbers(8 * 224 * 64), up = numbers(8 * 224 * 64);
  auto const down = numbers(8 * 64 * 224), x = numbers(4 * 64);
  std::vector<float> y(4 * 64), weights(4 * 2);
  std::vector<std::int32_t> experts(4 * 2);

  std::vector<std::byte> scratch(mixtral::workspace_bytes(4));
  mixtral::forward({.tokens = mixtral::rows(x.data(), 4),
                    .weights = {.router = {.weight = router.data()},
                                .gate_proj = mixtral::in_proj(gate.data()),
                                .up_proj = mixtral::in_proj(up.data()),
                                .down_proj = mixtral::out_proj(down.data())},
                    .output = mixtral::rows(y.data(), 4),
                    .workspace = scratch,
                    .decisions = {.experts = experts.data(), .weights = weights.data()}});

  std::printf("%s\n", sy::describe<mixtral>().c_str());
  bool right = true;
  for (int token = 0; token < 4; ++token) {
    float const first = weights[2 * token], second = weights[2 * token + 1];
    std::printf("token %d: %.3f of expert %d + %.3f of expert %d\n", token, first, experts[2 * token], second,
                experts[2 * token + 1]);
    right = right && first >= second && first + second > 0.9999f && first + second < 1.0001f;
  }
  return right ? 0 : 1;
}
