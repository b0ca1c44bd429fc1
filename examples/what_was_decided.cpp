// What a layer can tell about itself and about a call: its name and costs, the routes, the load, the auxiliary values.
#include <switchyard/switchyard.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

namespace sy = switchyard;

constexpr sy::shape dims{.hidden = 32, .intermediate = 64, .experts = 4, .top_k = 2};
using layer = sy::layer<dims, sy::router::softmax_top_k, sy::capacity::factor<1>, sy::expert::mlp<sy::gelu>>;

std::vector<float> numbers(std::size_t count) {
  static std::minstd_rand random(1);
  std::vector<float> result(count);
  for (float& value : result) value = static_cast<float>(random()) / static_cast<float>(random.max()) - 0.5f;
  return result;
}

int main() {
  constexpr int tokens = 6, pairs = tokens * dims.top_k;
  sy::layer_costs const costs = sy::costs<layer>(tokens);
  std::printf("%s\n%lld parameters, %lld for one token; %d tokens take %.0f FLOPs and at least %.0f bytes\n",
              sy::describe<layer>().c_str(), static_cast<long long>(costs.parameters),
              static_cast<long long>(costs.active_parameters), tokens, costs.flops, costs.bytes);

  auto const x = numbers(tokens * dims.hidden), router = numbers(dims.experts * dims.hidden);
  auto const up = numbers(dims.experts * dims.intermediate * dims.hidden), down = numbers(up.size());
  std::vector<float> y(tokens * dims.hidden), weights(pairs), logits(tokens * dims.experts);
  std::vector<std::int32_t> experts(pairs);
  std::vector<std::uint8_t> dropped(pairs);
  std::vector<std::int64_t> counts(dims.experts), load(dims.experts);
  sy::auxiliary_values auxiliary;
  std::vector<std::byte> scratch(layer::workspace_bytes(tokens));
  layer::forward({.tokens = layer::rows(x.data(), tokens),
                  .weights = {.router = {.weight = router.data()},
                              .up_proj = layer::in_proj(up.data()),
                              .down_proj = layer::out_proj(down.data())},
                  .output = layer::rows(y.data(), tokens),
                  .workspace = scratch,
                  .decisions = {.experts = experts.data(),
                                .weights = weights.data(),
                                .dropped = dropped.data(),
                                .counts = counts.data(),
                                .load = load.data()},
                  .report = {.logits = logits.data()},
                  .auxiliary = &auxiliary});

  int drops = 0;
  for (int token = 0; token < tokens; ++token) {
    std::printf("token %d:", token);
    for (int pair = token * dims.top_k; pair < (token + 1) * dims.top_k; ++pair) {
      std::printf("  expert %d, logit %+.2f, weight %.2f%-9s", experts[pair],
                  logits[token * dims.experts + experts[pair]], weights[pair], dropped[pair] ? ", dropped" : "");
      drops += dropped[pair];
    }
    std::printf("\n");
  }
  std::int64_t chosen = 0, computed = 0;
  for (int e = 0; e < dims.experts; ++e) {
    std::printf("expert %d: chosen %lld times, computed %lld\n", e, static_cast<long long>(load[e]),
                static_cast<long long>(counts[e]));
    chosen += load[e];
    computed += counts[e];
  }
  std::printf("load-balancing loss %.4f, router z-loss %.4f, coefficient of variation of the load %.4f\n",
              auxiliary.balance_first_choice, auxiliary.z_loss, auxiliary.load_variation);
  return chosen == pairs && computed == pairs - drops && std::isfinite(auxiliary.z_loss) ? 0 : 1;
}
