#pragma once

#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/route.hpp>
#include <switchyard/backend/cpu/steps.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/exponential.hpp>
#include <switchyard/core/finite.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/layer.hpp>
#include <switchyard/router/s_base.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>

/// What `router::s_base` needs between the logits of all tokens and the choice: a bias for each expert.
namespace switchyard::cpu {

/// Temporaries of the balance.
struct balance_memory {
  float* bias = nullptr;            ///< [experts]: the result
  float* most = nullptr;            ///< [blocks, experts]: the largest of a block's terms
  double* sum = nullptr;            ///< [blocks, experts]: the sum of their exponentials over that of the largest
  std::uint8_t* counted = nullptr;  ///< [tokens]: 1 for those that count
};

/// Tokens of an item: sums over tokens are those of blocks, in their order, whoever computes them.
inline constexpr int balance_tokens = 64;

/// log(sum over e of exp(logit[e] + sign * bias[e])) of one token, with at least one open expert.
inline float log_sum_of_token(float const* logits, float const* bias, float sign, int experts) {
  float most = -infinity;
  for (int e = 0; e < experts; ++e) most = std::max(most, logits[e] + sign * bias[e]);
  constexpr int together = 64;
  double sum = 0.0;
  for (int first = 0; first < experts; first += together) {
    int const count = std::min(together, experts - first);
    float term[together];
    for (int i = 0; i < count; ++i) term[i] = exponential(logits[first + i] + sign * bias[first + i] - most);
    for (int i = 0; i < count; ++i) sum += term[i];
  }
  return most + static_cast<float>(std::log(sum));
}

/// One bias per expert for the choice, see `router::s_base`, from the logits [tokens, experts] of tokens that are active and can be
/// routed. `router_bias` is null, or what closed an expert where it is minus infinity. O(iterations * tokens * experts); the same bits for
/// any number of threads.
inline void balance_experts(sinkhorn_traits form, float const* logits, std::int64_t tokens, int experts,
                            std::uint8_t const* active, float const* router_bias, cpu_context const& context,
                            balance_memory const& m) {
  std::int64_t const blocks = divide_up(tokens, balance_tokens);
  auto const is_closed = [&](int e) { return router_bias != nullptr && router_bias[e] == -infinity; };
  parallel_for(context, blocks, [&](std::int64_t block) {
    std::int64_t const end = std::min(tokens, (block + 1) * balance_tokens);
    for (std::int64_t t = block * balance_tokens; t < end; ++t) {
      bool routable = is_active(active, t), open = false;
      for (int e = 0; routable && e < experts; ++e) {
        bool const finite = is_finite(logits[t * experts + e]);
        routable = finite || (is_closed(e) && logits[t * experts + e] == -infinity);
        open = open || finite;
      }
      m.counted[t] = routable && open;
    }
  });
  std::int64_t counted = 0;
  for (std::int64_t t = 0; t < tokens; ++t) counted += m.counted[t];
  std::fill(m.bias, m.bias + experts, 0.0f);
  if (counted <= 1) return;  // nothing to be balanced with

  float const sign = form.subtracts ? -1.0f : 1.0f;
  double const share = std::log(static_cast<double>(counted) / experts);
  for (int iteration = 0; iteration < form.iterations; ++iteration) {
    parallel_for(context, blocks, [&](std::int64_t block) {
      std::int64_t const first = block * balance_tokens;
      int const rows = static_cast<int>(std::min<std::int64_t>(balance_tokens, tokens - first));
      float* const most = m.most + block * experts;
      double* const sum = m.sum + block * experts;
      std::fill(most, most + experts, -infinity);
      std::fill(sum, sum + experts, 0.0);
      float of_token[balance_tokens];  // what is added to its logits
      for (int r = 0; r < rows; ++r) {
        if (m.counted[first + r] == 0) continue;
        float const* const row = logits + (first + r) * experts;
        of_token[r] = -sign * log_sum_of_token(row, m.bias, sign, experts);
        for (int e = 0; e < experts; ++e) most[e] = std::max(most[e], row[e] + of_token[r]);
      }
      for (int r = 0; r < rows; ++r) {
        if (m.counted[first + r] == 0) continue;
        float const* const row = logits + (first + r) * experts;
        for (int e = 0; e < experts; ++e) sum[e] += exponential(row[e] + of_token[r] - most[e]);
      }
    });
    for (int e = 0; e < experts; ++e) {
      float most = -infinity;
      for (std::int64_t b = 0; b < blocks; ++b) most = std::max(most, m.most[b * experts + e]);
      if (most == -infinity) continue;  // closed to all
      double sum = 0.0;
      for (std::int64_t b = 0; b < blocks; ++b) {
        float const of_block = m.most[b * experts + e];
        if (of_block > -infinity) sum += m.sum[b * experts + e] * std::exp(static_cast<double>(of_block) - most);
      }
      m.bias[e] = static_cast<float>(share - (most + std::log(sum)));
    }
  }
}

/// Logits of all tokens, their balance, and the choice.
template <sinkhorn_traits Form>
struct route_step<router::from_balanced_logits<Form>> : route_step<router::from_logits> {
  using by_logits = route_step<router::from_logits>;

  template <class Layer>
  struct memory : by_logits::memory<Layer> {
    balance_memory balance;

    constexpr memory(carver& from, std::int64_t tokens) : by_logits::memory<Layer>(from, tokens) {
      std::int64_t const partial = divide_up(tokens, balance_tokens) * Layer::all_experts;
      balance.sum = from.take<double>(partial);
      balance.most = from.take<float>(partial);
      balance.bias = from.take<float>(Layer::all_experts);
      balance.counted = from.take<std::uint8_t>(tokens);
    }
  };

  template <class Layer>
  static void run(forward_args<Layer> const& args, cpu_context const& context, memory<Layer> const& m, routes const& to,
                  names const& called) {
    by_logits::template logits_of<Layer>(args, context, m);
    router_weights router = router::weights_of(args);
    balance_experts(Form, m.logits, args.tokens.rows, Layer::all_experts, args.active,
                    Layer::router_traits.bias ? router.bias : nullptr, context, m.balance);
    router.correction_bias = m.balance.bias;
    by_logits::template choose<Layer>(args, context, m, router, to, called);
  }
};

}  // namespace switchyard::cpu
