#pragma once

#include <switchyard/core/divide_up.hpp>
#include <switchyard/dispatch/plan.hpp>
#include <switchyard/layer.hpp>

#include <cuda_runtime.h>

#include <cstdint>

/// Step 2 of `backend::cuda`: from routes to the rows of each expert, the same ones as `dispatch::make_plan`'s. A block
/// looks through all pairs for those of its expert, so nothing is sorted (but
/// by queue::priority), nothing but whole numbers is added atomically, and nothing is read by the host.
namespace switchyard::backend::device {

inline constexpr int plan_threads = 512, plan_warps = plan_threads / 32;

/// What planning reads and writes, all on the device.
struct plan_args {
  std::int64_t tokens;
  std::int64_t group_size;         ///< tokens per group, at least 1
  std::int64_t slots, slots_last;  ///< of each group, and of the last one, which may be smaller
  std::int32_t const* experts;     ///< [tokens, top_k], -1 where a pair goes nowhere
  float const* routed_weights;     ///< [tokens, top_k] as the router made them
  std::int32_t const* order;       ///< [tokens], queue::priority: tokens of each group by descending priority
  std::uint8_t* dropped;           ///< [tokens, top_k]; written by `queue_pairs`, null without drops
  std::int32_t const* chosen;      ///< [experts, chosen_pieces], see `route_args`
  std::int64_t chosen_pieces;
  std::int32_t* kept;  ///< [experts, kept_pieces]: `chosen`, or one piece per group when pairs are dropped
  std::int64_t kept_pieces;
  float* weights;  ///< [tokens, top_k], renormalised; may be `routed_weights`
  dispatch_plan plan;
  std::int32_t* first_tile;  ///< [experts + 1]: row tiles of the product before each expert
  int tile_rows;
  std::int64_t* counts;  ///< [experts], null: nobody asks
  std::int64_t* load;    ///< [experts], null: nobody asks
};

/// Numbers the pairs of a block's expert among `tokens` tokens: `visit(token, k, number)` for every token and choice
/// that `matches(token, k)`, one thread for each token. Numbers follow the tokens, all choices of a token together, or,
/// `ByChoice`, all first choices in the order of tokens, then all second ones. Returns how many there are.
template <int TopK, bool ByChoice, class Matches, class Visit>
__device__ std::int32_t number_pairs(std::int64_t tokens, Matches const& matches, Visit const& visit) {
  constexpr int queues = ByChoice ? TopK : 1;
  __shared__ std::int32_t counts[queues][plan_warps];
  int const thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  unsigned const before = (1u << lane) - 1;
  std::int64_t const share = divide_up(divide_up(tokens, 32), plan_warps) * 32;
  std::int64_t const begin = warp * share, end = begin + share < tokens ? begin + share : tokens;

  std::int32_t count[queues] = {};
  for (std::int64_t first = begin; first < end; first += 32) {
#pragma unroll
    for (int k = 0; k < TopK; ++k) {
      bool const match = first + lane < end && matches(first + lane, k);
      count[ByChoice ? k : 0] += __popc(__ballot_sync(~0u, match));
    }
  }
  __syncthreads();  // `counts` may be in use by the last call
  if (lane == 0) {
    for (int q = 0; q < queues; ++q) counts[q][warp] = count[q];
  }
  __syncthreads();
  std::int32_t all = 0;
#pragma unroll
  for (int q = 0; q < queues; ++q) {
    for (int w = 0; w < plan_warps; ++w) {
      if (w == warp) count[q] = all;  // now: the next number
      all += counts[q][w];
    }
  }
  for (std::int64_t first = begin; first < end; first += 32) {
    std::int64_t const token = first + lane;
    if constexpr (ByChoice) {
#pragma unroll
      for (int k = 0; k < TopK; ++k) {
        bool const match = token < end && matches(token, k);
        unsigned const found = __ballot_sync(~0u, match);
        if (match) visit(token, k, count[k] + __popc(found & before));
        count[k] += __popc(found);
      }
    } else {
      std::int32_t number = count[0];
#pragma unroll
      for (int k = 0; k < TopK; ++k) {
        unsigned const found = __ballot_sync(~0u, token < end && matches(token, k));
        number += __popc(found & before);
        count[0] += __popc(found);
      }
      if (token < end) {
#pragma unroll
        for (int k = 0; k < TopK; ++k) {
          if (matches(token, k)) visit(token, k, number++);
        }
      }
    }
  }
  return all;
}

/// A group's tokens by descending priority, equal ones in their order: a radix sort by 8 bits at a time, a block per group.
/// CUB's sort wants scratch memory whose size only the device at hand can tell; `workspace_bytes` is a constant.
template <class Layer>
__global__ void __launch_bounds__(plan_threads, 2)
    order_tokens(float const* priority, std::int64_t tokens, std::int64_t group_size, std::int32_t* order,
                 std::int32_t* scratch) {
  constexpr int digits = 256;
  __shared__ std::int32_t next[plan_warps][digits];  // how many, then the place of the next one
  __shared__ std::int32_t digit_begin[digits];
  int const thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  std::int64_t const begin = blockIdx.x * group_size;
  std::int64_t const size = tokens - begin < group_size ? tokens - begin : group_size;
  std::int64_t const share = divide_up(divide_up(size, 32), plan_warps) * 32;
  std::int64_t const first = warp * share, end = first + share < size ? first + share : size;

  for (int pass = 0; pass < 4; ++pass) {
    std::int32_t const* const from = (pass % 2 == 0 ? order : scratch) + begin;
    std::int32_t* const to = (pass % 2 == 0 ? scratch : order) + begin;
    auto const token_at = [&](std::int64_t place) {
      return pass == 0 ? static_cast<std::int32_t>(begin + place) : from[place];
    };
    auto const digit_of = [&](std::int32_t token) {
      // Bits that ascend as floats do, turned round; minus zero is zero.
      std::uint32_t const bits = __float_as_uint(priority[token] + 0.0f);
      std::uint32_t const ascending = bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
      return static_cast<int>(~ascending >> (8 * pass) & 0xffu);
    };
    for (int d = lane; d < digits; d += 32) next[warp][d] = 0;
    __syncwarp();
    for (std::int64_t place = first + lane; place < end; place += 32) {
      atomicAdd(&next[warp][digit_of(token_at(place))], 1);
    }
    __syncthreads();
    if (thread < digits) {
      std::int32_t count = 0;
      for (int w = 0; w < plan_warps; ++w) {
        std::int32_t const mine = next[w][thread];
        next[w][thread] = count;
        count += mine;
      }
      digit_begin[thread] = count;
    }
    __syncthreads();
    if (warp == 0) {  // counts of digits to the places where they begin
      std::int32_t sum = 0;
      for (int d = 0; d < digits; d += 32) {
        std::int32_t const count = digit_begin[d + lane];
        std::int32_t up_to = count;
        for (int distance = 1; distance < 32; distance *= 2) {
          std::int32_t const other = __shfl_up_sync(~0u, up_to, distance);
          if (lane >= distance) up_to += other;
        }
        digit_begin[d + lane] = sum + up_to - count;
        sum += __shfl_sync(~0u, up_to, 31);
      }
    }
    __syncthreads();
    for (std::int64_t line = first; line < end; line += 32) {
      bool const has = line + lane < end;
      std::int32_t const token = has ? token_at(line + lane) : 0;
      int const digit = has ? digit_of(token) : digits;
      unsigned const alike = __match_any_sync(~0u, digit);
      std::int32_t const place = has ? digit_begin[digit] + next[warp][digit] + __popc(alike & ((1u << lane) - 1)) : 0;
      __syncwarp();  // all have read
      if (has && (alike >> lane) == 1u) next[warp][digit] += __popc(alike);
      __syncwarp();
      if (has) to[place] = token;
    }
    __syncthreads();
  }
}

/// Says of the pairs of one expert and one group whether the expert takes them: the first `slots` of the queue.
template <class Layer>
__global__ void __launch_bounds__(plan_threads, 2) queue_pairs(plan_args const args) {
  constexpr int experts = Layer::dims.experts, top_k = Layer::dims.top_k;
  constexpr queue order = Layer::capacity_traits.order;
  std::int32_t const expert = static_cast<std::int32_t>(blockIdx.x % experts);
  std::int64_t const group = blockIdx.x / experts, begin = group * args.group_size;
  bool const last = group + 1 == args.kept_pieces;
  std::int64_t const size = last ? args.tokens - begin : args.group_size;
  std::int64_t const slots = last ? args.slots_last : args.slots;
  auto const pair_at = [&](std::int64_t place, int k) {
    std::int64_t const token = order == queue::priority ? args.order[begin + place] : begin + place;
    return token * top_k + k;
  };
  std::int32_t const count = number_pairs<top_k, order != queue::token_order>(
      size, [&](std::int64_t place, int k) { return args.experts[pair_at(place, k)] == expert; },
      [&](std::int64_t place, int k, std::int32_t number) { args.dropped[pair_at(place, k)] = number >= slots; });
  if (threadIdx.x == 0) {
    args.kept[expert * args.kept_pieces + group] = count < slots ? count : static_cast<std::int32_t>(slots);
  }
  if (expert == 0) {  // pairs that go nowhere are not dropped
    for (std::int64_t pair = begin * top_k + threadIdx.x; pair < (begin + size) * top_k; pair += plan_threads) {
      if (args.experts[pair] < 0) args.dropped[pair] = 0;
    }
  }
}

/// The sum of one row of a `[experts, pieces]` array, on every lane of the warp.
__device__ inline std::int32_t sum_of_pieces(std::int32_t const* row, std::int64_t pieces) {
  std::int32_t sum = 0;
  for (std::int64_t i = threadIdx.x % 32; i < pieces; i += 32) sum += row[i];
  return __reduce_add_sync(~0u, sum);
}

/// Gives the kept pairs of one expert their rows, in the order of tokens; no rows between experts are left free.
template <class Layer>
__global__ void __launch_bounds__(plan_threads, 2) assign_rows(plan_args const args) {
  constexpr int experts = Layer::dims.experts, top_k = Layer::dims.top_k;
  constexpr capacity_traits capacity = Layer::capacity_traits;
  std::int32_t const expert = static_cast<std::int32_t>(blockIdx.x);
  int const thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;

  __shared__ std::int32_t rows_before, tiles_before, rows_here;
  if (thread == 0) rows_before = tiles_before = 0;
  __syncthreads();
  for (std::int32_t e = warp; e <= expert; e += plan_warps) {
    std::int32_t const rows = sum_of_pieces(args.kept + e * args.kept_pieces, args.kept_pieces);
    if (lane != 0) continue;
    if (e == expert) {
      rows_here = rows;
    } else {
      atomicAdd(&rows_before, rows);
      atomicAdd(&tiles_before, static_cast<std::int32_t>(divide_up(rows, args.tile_rows)));
    }
  }
  if (args.load != nullptr && warp == plan_warps - 1) {
    std::int32_t const load = sum_of_pieces(args.chosen + expert * args.chosen_pieces, args.chosen_pieces);
    if (lane == 0) args.load[expert] = load;
  }
  __syncthreads();
  std::int32_t const first_row = rows_before;
  if (thread == 0) {
    args.plan.offsets[expert] = first_row;
    args.first_tile[expert] = tiles_before;
    if (expert == experts - 1) {
      args.plan.offsets[experts] = first_row + rows_here;
      args.first_tile[experts] = tiles_before + static_cast<std::int32_t>(divide_up(rows_here, args.tile_rows));
    }
    if (args.counts != nullptr) args.counts[expert] = rows_here;
  }

  number_pairs<top_k, false>(
      args.tokens,
      [&](std::int64_t token, int k) {
        std::int64_t const pair = token * top_k + k;
        return args.experts[pair] == expert && (!capacity.drops || args.dropped[pair] == 0);
      },
      [&](std::int64_t token, int k, std::int32_t number) {
        std::int32_t const row = first_row + number;
        args.plan.pair_of[row] = static_cast<std::int32_t>(token * top_k + k);
        args.plan.row_of[token * top_k + k] = row;
      });

  // What the blocks of all experts share: one token here, the next there.
  for (std::int64_t token = std::int64_t{expert} * plan_threads + thread; token < args.tokens;
       token += std::int64_t{experts} * plan_threads) {
    std::int64_t const pair = token * top_k;
    for (int k = 0; k < top_k; ++k) {
      if (args.experts[pair + k] < 0 || (capacity.drops && args.dropped[pair + k] != 0))
        args.plan.row_of[pair + k] = -1;
    }
    if constexpr (capacity.renormalises) {
      float total = 0.0f;
      for (int k = 0; k < top_k; ++k) total += args.dropped[pair + k] != 0 ? 0.0f : args.routed_weights[pair + k];
      total = total > dispatch::least_weight_sum ? total : dispatch::least_weight_sum;
      for (int k = 0; k < top_k; ++k) {
        args.weights[pair + k] = args.dropped[pair + k] != 0 ? 0.0f : args.routed_weights[pair + k] / total;
      }
    }
  }
}

}  // namespace switchyard::backend::device
