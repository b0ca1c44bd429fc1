// The layer of the Switch Transformer: one expert per token, and each expert has room for its even share of the
// tokens and a quarter more. Tokens beyond that are dropped: the residual connection carries them.
#include <switchyard/switchyard.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

namespace sy = switchyard;

using switch_layer = sy::layer<sy::shape{.hidden = 32, .intermediate = 128, .experts = 4, .top_k = 1},
                               sy::router::switch_top1, sy::capacity::factor<5, 4>, sy::expert::mlp<sy::relu>>;

std::vector<float> numbers(std::size_t count) {
  static std::minstd_rand random(4);
  std::vector<float> result(count);
  for (float& value : result) value = static_cast<float>(random()) / static_cast<float>(random.max()) - 0.5f;
  return result;
}

int main() {
  constexpr int tokens = 64, hidden = switch_layer::dims.hidden, experts = switch_layer::dims.experts;
  constexpr int intermediate = switch_layer::dims.intermediate;
  auto const router = numbers(experts * hidden), x = numbers(tokens * hidden);
  auto const up = numbers(experts * intermediate * hidden), down = numbers(experts * hidden * intermediate);
  std::vector<float> y(tokens * hidden);
  std::vector<std::uint8_t> dropped(tokens);
  std::vector<std::int64_t> load(experts), counts(experts);

  // The expert is not gated, so there is no gate_proj to set.
  switch_layer::weights const weights{.router = {.weight = router.data()},
                                      .up_proj = switch_layer::in_proj(up.data()),
                                      .down_proj = switch_layer::out_proj(down.data())};
  std::vector<std::byte> scratch(switch_layer::workspace_bytes(tokens));
  switch_layer::forward({.tokens = switch_layer::rows(x.data(), tokens),
                         .weights = weights,
                         .output = switch_layer::rows(y.data(), tokens),
                         .workspace = scratch,
                         .decisions = {.dropped = dropped.data(), .counts = counts.data(), .load = load.data()}});

  std::int64_t const slots = sy::capacity::factor<5, 4>::slots_per_expert(switch_layer::dims, tokens);
  std::printf("%s\n%d tokens, %lld slots per expert\n", sy::describe<switch_layer>().c_str(), tokens,
              static_cast<long long>(slots));
  bool right = slots == 20;  // 1.25 * 64 / 4
  for (int e = 0; e < experts; ++e) {
    std::printf("expert %d: chosen by %2lld, computed %2lld\n", e, static_cast<long long>(load[e]),
                static_cast<long long>(counts[e]));
    right = right && counts[e] == (load[e] < slots ? load[e] : slots);
  }
  int zeros = 0;
  for (int token = 0; token < tokens; ++token) {
    bool zero = true;
    for (int i = 0; i < hidden; ++i) zero = zero && y[token * hidden + i] == 0.0f;
    zeros += zero;
    right = right && zero == (dropped[token] != 0);
  }
  std::printf("%d tokens were dropped: their output is zero\n", zeros);
  return right && zeros > 0 ? 0 : 1;
}
