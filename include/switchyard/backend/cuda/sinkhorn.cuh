#pragma once

#include <switchyard/backend/cuda/block_sums.cuh>
#include <switchyard/backend/cuda/launch.cuh>
#include <switchyard/backend/cuda/route.cuh>
#include <switchyard/backend/cuda/steps.cuh>
#include <switchyard/backend/cuda/warp_lanes.cuh>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/finite.hpp>
#include <switchyard/core/lanes.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/layer.hpp>
#include <switchyard/router/s_base.hpp>

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

/// Step 1 of `backend::cuda` for `router::s_base`: the logits of all tokens are balanced before any is routed.
///
/// tokens, router weight --tokens_to_logits--> logits, then for each iteration
/// logits --sum_balanced_tokens--> sums of tiles of tokens --balance_experts--> a bias for each expert;
/// logits, biases --choose_experts--> routes. Sums are taken in an order that depends on nothing but the number of tokens.
namespace switchyard::cuda {

inline constexpr int balance_threads = 256;
inline constexpr int balance_tokens = 32;  ///< of a tile

/// What the balance reads and writes, all on the device.
struct balance_args {
  std::int64_t tokens;
  int experts;
  float sign;                  ///< of the other iteration's logarithms in sums
  float const* logits;         ///< [tokens, experts]
  std::uint8_t const* active;  ///< null: all
  float const* router_bias;    ///< [experts]: minus infinity closes an expert; null: none
  float* bias;                 ///< [experts]: the result
  float *most, *sum;      ///< [tiles, experts]: the largest of a tile's terms, and the sum of exponentials over its own
  std::int32_t* counted;  ///< [tiles]: tokens that count
};

/// Whether a token counts: it is active and can be routed. A warp's lanes get the same answer.
__device__ inline bool counts_in_balance(balance_args const& args, std::int64_t token) {
  if (args.active != nullptr && args.active[token] == 0) return false;
  bool routable = true, open = false;
  for (int e = static_cast<int>(threadIdx.x) % 32; e < args.experts; e += 32) {
    float const logit = args.logits[token * args.experts + e];
    bool const finite = is_finite(logit);
    bool const closed = args.router_bias != nullptr && args.router_bias[e] == -infinity && logit == -infinity;
    routable = routable && (finite || closed);
    open = open || finite;
  }
  return __all_sync(~0u, routable) != 0 && __any_sync(~0u, open) != 0;
}

/// A tile's tokens to what they add to their logits, a warp per token, and then to sums of each expert, a thread per expert. `begins`:
/// biases are zeros still.
template <int Threads>
__global__ void __launch_bounds__(Threads) sum_balanced_tokens(balance_args const args, bool begins) {
  __shared__ float of_token[balance_tokens];  // what is added to its logits; infinity: it does not count
  int const thread = static_cast<int>(threadIdx.x), lane = thread % 32, experts = args.experts;
  std::int64_t const first = std::int64_t{blockIdx.x} * balance_tokens, left = args.tokens - first;
  int const count = left < balance_tokens ? static_cast<int>(left) : balance_tokens;
  warp_lanes const lanes{};
  for (int t = thread / 32; t < count; t += Threads / 32) {
    float const* const row = args.logits + (first + t) * experts;
    bool const counts = counts_in_balance(args, first + t);  // the same for all lanes
    float log_sum = infinity;
    if (counts) {
      float most = -infinity;
      for (int e = lane; e < experts; e += 32) {
        float const term = row[e] + (begins ? 0.0f : args.sign * args.bias[e]);
        most = term > most ? term : most;
      }
      most = lanes.max(most);
      float sum = 0.0f;
      for (int e = lane; e < experts; e += 32) {
        sum += std::exp(row[e] + (begins ? 0.0f : args.sign * args.bias[e]) - most);
      }
      log_sum = most + std::log(lanes.sum(sum));
    }
    if (lane == 0) of_token[t] = counts ? -args.sign * log_sum : infinity;
  }
  __syncthreads();
  for (int e = thread; e < experts; e += Threads) {
    float const* const column = args.logits + first * experts + e;
    float most = -infinity, sum = 0.0f;
    for (int t = 0; t < count; ++t) {
      float const term = column[std::int64_t{t} * experts] + of_token[t];
      if (of_token[t] < infinity && term > most) most = term;
    }
    for (int t = 0; t < count; ++t) {
      if (of_token[t] < infinity && most > -infinity) {
        sum += std::exp(column[std::int64_t{t} * experts] + of_token[t] - most);
      }
    }
    args.most[blockIdx.x * std::int64_t{experts} + e] = most;
    args.sum[blockIdx.x * std::int64_t{experts} + e] = sum;
  }
  if (thread != 0) return;
  std::int32_t counted = 0;
  for (int t = 0; t < count; ++t) counted += of_token[t] < infinity ? 1 : 0;
  args.counted[blockIdx.x] = counted;
}

/// The sums of tiles to a bias of each expert, a warp per expert.
template <int Threads>
__global__ void __launch_bounds__(Threads) balance_experts(balance_args const args, std::int64_t tiles) {
  int const experts = args.experts, lane = static_cast<int>(threadIdx.x) % 32;
  int const expert = static_cast<int>(blockIdx.x) * (Threads / 32) + static_cast<int>(threadIdx.x) / 32;
  if (expert >= experts) return;
  float most = -infinity;
  std::int32_t counted = 0;
  for (std::int64_t tile = lane; tile < tiles; tile += 32) {
    float const of_tile = args.most[tile * experts + expert];
    most = of_tile > most ? of_tile : most;
    counted += args.counted[tile];
  }
  most = warp_lanes{}.max(most);
  counted = sum_over_warp(counted);
  double sum = 0.0;
  for (std::int64_t tile = lane; tile < tiles; tile += 32) {
    float const of_tile = args.most[tile * experts + expert];
    if (of_tile > -infinity) {
      sum += args.sum[tile * experts + expert] * std::exp(static_cast<double>(of_tile) - most);
    }
  }
  sum = sum_over_warp(sum);
  if (lane != 0) return;
  bool const balanced = counted > 1 && most > -infinity;
  double const share = std::log(static_cast<double>(counted) / experts);
  args.bias[expert] = balanced ? static_cast<float>(share - (most + std::log(sum))) : 0.0f;
}

/// Logits of all tokens, their balance, and the choice.
template <sinkhorn_traits Form>
struct route_step<router::from_balanced_logits<Form>> : route_step<router::from_logits> {
  using by_logits = route_step<router::from_logits>;

  template <class Layer>
  struct memory : by_logits::memory<Layer> {
    float *bias, *most, *sum;
    std::int32_t* counted;

    constexpr memory(carver& from, std::int64_t tokens) : by_logits::memory<Layer>(from, tokens) {
      std::int64_t const tiles = divide_up(tokens, balance_tokens), experts = Layer::all_experts;
      bias = from.take<float>(experts);
      most = from.take<float>(tiles * experts);
      sum = from.take<float>(tiles * experts);
      counted = from.take<std::int32_t>(tiles);
    }
  };

  template <class Layer>
  static void enqueue(forward_args<Layer> const& args, launch_queue const& queue, memory<Layer> const& m,
                      route_results const& results, pass_size const* pass) {
    using routing = layer_routing<Layer>;
    std::int64_t const tokens = args.tokens.rows;
    if (tokens == 0 && !routing::scales) return;
    auto to = by_logits::template prepare<Layer>(args, queue, m, results, pass);
    if (tokens == 0) return;
    if (to.logits == nullptr) to.logits = m.logits;
    if constexpr (by_logits::template fits_everywhere<Layer>()) {
      if (by_logits::template block_tokens<Layer>(tokens) == 32) return enqueue_tile<2>(args, queue, m, to);
    }
    enqueue_tile<1>(args, queue, m, to);
  }

 private:
  template <int TokenBlocks, class Layer>
  static void enqueue_tile(forward_args<Layer> const& args, launch_queue const& queue, memory<Layer> const& m,
                           typename layer_routing<Layer>::args to) {
    using routing = layer_routing<Layer>;
    using tile = route_tile<routing, TokenBlocks>;
    constexpr int experts = Layer::all_experts;
    std::int64_t const tokens = args.tokens.rows, tiles = divide_up(tokens, balance_tokens);
    by_logits::template check_tile<tile>();
    launch(queue, "tokens_to_logits", tokens_to_logits<routing, TokenBlocks>, to.results.chosen.token_blocks,
           tile::threads, tile::shared_bytes, to);
    balance_args const balance{.tokens = tokens,
                               .experts = experts,
                               .sign = Form.subtracts ? -1.0f : 1.0f,
                               .logits = to.logits,
                               .active = args.active,
                               .router_bias = to.router.bias,
                               .bias = m.bias,
                               .most = m.most,
                               .sum = m.sum,
                               .counted = m.counted};
    for (int iteration = 0; iteration < Form.iterations; ++iteration) {
      launch(queue, "sum_balanced_tokens", sum_balanced_tokens<balance_threads>, tiles, balance_threads, 0, balance,
             iteration == 0);
      launch(queue, "balance_experts", balance_experts<balance_threads>, divide_up(experts, balance_threads / 32),
             balance_threads, 0, balance, tiles);
    }
    to.router.correction_bias = m.bias;
    launch(queue, "choose_experts", choose_experts<routing, TokenBlocks>, to.results.chosen.token_blocks, tile::threads,
           tile::set_bytes, to, by_logits::template inputs_of<Layer>(args));
  }
};

}  // namespace switchyard::cuda
