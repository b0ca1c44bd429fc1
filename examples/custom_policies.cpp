// A router, a capacity and an expert of one's own, used in a layer like those of the library.
#include <switchyard/switchyard.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string_view>
#include <vector>

namespace sy = switchyard;

/// Top-k whose later choices weigh nothing where the first is more than twice as likely.
struct confident {
  static constexpr std::string_view name = "confident";
  static constexpr sy::router_traits traits{};

  template <int TopK, int Experts, class Lanes>
  static sy::route<TopK> select(Lanes lanes, sy::per_expert<Experts, Lanes> const& logits,
                                sy::router_weights const& weights) {
    auto result = sy::router::softmax_top_k_raw::select<TopK>(lanes, logits, weights);
    for (float& w : result.weight) w = 2.0f * w < result.weight[0] ? 0.0f : w;
    sy::router::weighting::sum::apply(result.weight);
    return result;
  }
};
static_assert(sy::router_policy<confident>);

/// The next power of two above an even share, for kernels that like such sizes.
struct power_of_two {
  static constexpr std::string_view name = "power_of_two";
  static constexpr sy::capacity_traits traits{.on_drop = sy::dropped::weighted_input};
  static constexpr std::int64_t slots_per_expert(sy::shape dims, std::int64_t tokens) {
    std::int64_t slots = 1;
    while (slots * dims.experts < tokens * dims.top_k) slots *= 2;
    return slots;
  }
};
static_assert(sy::capacity_policy<power_of_two>);

/// An expert with two input projections whose product is squashed: down(tanh(gate(x) * up(x))).
struct tanh_expert {
  static constexpr std::string_view name = "tanh_expert";
  static constexpr sy::expert_traits traits{.gated = true};
  struct activation {
    static constexpr std::string_view name = "tanh_of_product";
    static float apply(float gate, float up) { return std::tanh(gate * up); }
  };
};
static_assert(sy::expert_policy<tanh_expert>);

constexpr sy::shape dims{.hidden = 8, .intermediate = 16, .experts = 4, .top_k = 2};
using own_layer = sy::layer<dims, confident, power_of_two, tanh_expert>;

int main() {
  constexpr int tokens = 12;
  std::minstd_rand random(1);
  std::vector<float> numbers(dims.experts * dims.hidden * (1 + 3 * dims.intermediate) + tokens * dims.hidden);
  for (float& value : numbers) value = 2.0f * static_cast<float>(random()) / static_cast<float>(random.max()) - 1.0f;
  float const* const x = numbers.data();
  float const* const router = x + tokens * dims.hidden;
  float const* const gate = router + dims.experts * dims.hidden;
  float const* const up = gate + dims.experts * dims.hidden * dims.intermediate;
  float const* const down = up + dims.experts * dims.hidden * dims.intermediate;
  std::vector<float> y(tokens * dims.hidden), weights(tokens * dims.top_k);
  std::vector<std::byte> scratch(own_layer::workspace_bytes(tokens));

  own_layer::forward({.tokens = own_layer::rows(x, tokens),
                      .weights = {.router = {.weight = router},
                                  .gate_proj = own_layer::in_proj(gate),
                                  .up_proj = own_layer::in_proj(up),
                                  .down_proj = own_layer::out_proj(down)},
                      .output = own_layer::rows(y.data(), tokens),
                      .workspace = scratch,
                      .decisions = {.weights = weights.data()}});

  int alone = 0;
  for (int token = 0; token < tokens; ++token) alone += weights[2 * token] == 1.0f && weights[2 * token + 1] == 0.0f;
  std::printf("%s\n%d of %d tokens were sure of their first expert\n", sy::describe<own_layer>().c_str(), alone,
              tokens);
  return alone > 0 && alone < tokens ? 0 : 1;
}
