#pragma once

#include <switchyard/backend/cuda/block_sums.cuh>
#include <switchyard/backend/cuda/pair_sets.cuh>
#include <switchyard/backend/cuda/pass_size.cuh>
#include <switchyard/capacity/capacity_policy.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/shape.hpp>
#include <switchyard/dispatch/plan.hpp>

#include <cuda_runtime.h>

#include <cstdint>

/// Step 2 of `backend::cuda`: from routes to the rows of each expert, the same ones as `dispatch::make_plan`'s.
///
/// Routing has left a set of pairs for every expert. A block walks through the set of its expert, a word per thread: the
/// number of bits before a bit is the rank of its pair. So nothing is sorted (but by queue::priority), nothing is read
/// for every expert again, nothing but bits is changed atomically, and the host reads nothing.
namespace switchyard::cuda {

// A parameter of the kernels, so that only those are compiled that somebody launches.
inline constexpr int plan_threads = 512, plan_warps = plan_threads / 32;

/// What planning reads and writes, all on the device. Pairs of experts beyond `experts` compute nothing: they take no row and no slot.
struct plan_args {
  int experts, top_k;
  queue served;  ///< the order in which pairs ask for slots
  bool renormalises;
  std::int64_t tokens;
  pass_size const* pass;    ///< null: all tokens; else there is one group
  std::int64_t group_size;  ///< tokens per group, at least 1
  std::int64_t groups;
  std::uint8_t const* active;  ///< padding that capacity does not count; null: every token counts
  pair_sets chosen;            ///< pairs that chose each expert
  pair_sets kept;              ///< of them, those that it takes: `chosen` itself without drops
  pair_sets sorted;            ///< queue::priority: `chosen` by descending priority, a pair being (rank, choice)
  std::int32_t const* below;   ///< [experts, token_blocks of kept]: pairs of each token block that chose a lower expert
  std::int32_t* rows;          ///< [experts, groups]: rows of each expert from each group; null without drops
  std::int32_t const* choices;    ///< [tokens, top_k]: experts, -1 where a pair goes nowhere
  float const* routed_weights;    ///< [tokens, top_k] as the router made them
  float const* priority;          ///< [tokens], queue::priority
  std::int32_t *order, *scratch;  ///< [tokens], queue::priority: tokens of each group by descending priority
  std::uint8_t* dropped;          ///< [tokens, top_k], zeros before `queue_pairs`; null without drops
  float* weights;                 ///< [tokens, top_k], renormalised; may be `routed_weights`
  dispatch_plan plan;             ///< row_of is -1 already where a pair goes nowhere
  std::int32_t* any_exponent;     ///< made 0 for the products, see half_rows.cuh; null without it
  std::int64_t* counts;           ///< [all experts], null: nobody asks
  std::int64_t* load;             ///< [all experts], null: nobody asks
};

/// The sum of `count` numbers, on every thread of the block.
__device__ inline std::int32_t sum_of(std::int32_t const* first, std::int64_t count) {
  std::int32_t sum = 0;
  for (std::int64_t i = threadIdx.x; i < count; i += plan_threads) sum += first[i];
  return scan_block<plan_threads>(sum).all;
}

/// How many pairs a set has, on every thread of the block.
__device__ inline std::int32_t size_of(std::uint32_t const* set, std::int64_t words) {
  std::int32_t size = 0;
  for (std::int64_t i = threadIdx.x; i < words; i += plan_threads) size += __popc(set[i]);
  return scan_block<plan_threads>(size).all;
}

/// A group's tokens by descending priority, equal ones in their order: a radix sort by 8 bits at a time, a block per
/// group. CUB's sort of a whole device wants scratch memory whose size only the device at hand can tell; `workspace_bytes`
/// is a constant.
template <int Threads>
__global__ void __launch_bounds__(Threads, 2) order_tokens(plan_args const args) {
  constexpr int digits = 256;
  __shared__ std::int32_t next[plan_warps][digits];  // how many, then the rank of the next one
  __shared__ std::int32_t digit_begin[digits];
  int const thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  std::int64_t const begin = blockIdx.x * args.group_size, tokens = tokens_at_hand(args.tokens, args.pass);
  std::int64_t const size = tokens - begin < args.group_size ? tokens - begin : args.group_size;
  std::int64_t const share = divide_up(divide_up(size, 32), plan_warps) * 32;
  std::int64_t const first = warp * share, end = first + share < size ? first + share : size;

  for (int digit = 0; digit < 4; ++digit) {
    std::int32_t const* const from = (digit % 2 == 0 ? args.order : args.scratch) + begin;
    std::int32_t* const to = (digit % 2 == 0 ? args.scratch : args.order) + begin;
    auto const token_at = [&](std::int64_t rank) {
      return digit == 0 ? static_cast<std::int32_t>(begin + rank) : from[rank];
    };
    auto const digit_of = [&](std::int32_t token) {
      // Bits that ascend as floats do, turned round; minus zero is zero.
      std::uint32_t const bits = __float_as_uint(args.priority[token] + 0.0f);
      std::uint32_t const ascending = bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
      return static_cast<int>(~ascending >> (8 * digit) & 0xffu);
    };
    for (int d = lane; d < digits; d += 32) next[warp][d] = 0;
    __syncwarp();
    for (std::int64_t rank = first + lane; rank < end; rank += 32) {
      atomicAdd(&next[warp][digit_of(token_at(rank))], 1);
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
    if (warp == 0) {  // counts of digits to the ranks where they begin
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
      std::int32_t const rank = has ? digit_begin[digit] + next[warp][digit] + __popc(alike & ((1u << lane) - 1)) : 0;
      __syncwarp();  // all have read
      if (has && (alike >> lane) == 1u) next[warp][digit] += __popc(alike);
      __syncwarp();
      if (has) to[rank] = token;
    }
    __syncthreads();
  }
  int const top_k = args.top_k;
  for (std::int64_t rank = begin + thread; rank < begin + size; rank += plan_threads) {
    std::int64_t const token = args.order[rank];
    for (int k = 0; k < top_k; ++k) {
      std::int32_t const expert = args.choices[token * top_k + k];
      if (expert < 0) continue;
      pair_sets::bit_position const sorted = args.sorted.bit_of(rank * top_k + k);
      atomicOr(args.sorted.of(expert) + sorted.word, 1u << sorted.bit);
    }
  }
}

/// How many slots an expert has, as kernels need it.
template <class Capacity, shape Dims>
struct slots_of {
  SWITCHYARD_HD static constexpr std::int64_t of(std::int64_t tokens) {
    return Capacity::slots_per_expert(Dims, tokens);
  }
};

/// The pairs of one expert and one group that the expert does not take: those past the first slots of the queue.
template <int Threads, class Slots>
__global__ void __launch_bounds__(Threads, 2) queue_pairs(plan_args const args) {
  int const experts = args.experts, top_k = args.top_k;
  bool const sorted = args.served == queue::priority;
  std::int32_t const expert = static_cast<std::int32_t>(blockIdx.x % experts);
  std::int64_t const group = blockIdx.x / experts, first = group * args.group_size * top_k;
  bool const last = group + 1 == args.groups;
  std::int64_t const tokens = tokens_at_hand(args.tokens, args.pass);
  std::int64_t const size = last ? tokens - group * args.group_size : args.group_size, pairs = size * top_k;
  std::int64_t counted = size;
  if (args.active != nullptr) {
    std::int32_t mine = 0;
    for (std::int64_t i = threadIdx.x; i < size; i += plan_threads) {
      mine += args.active[group * args.group_size + i] != 0 ? 1 : 0;
    }
    counted = scan_block<plan_threads>(mine).all;
  }
  std::int64_t const slots = Slots::of(counted);
  pair_sets const& queued = sorted ? args.sorted : args.chosen;

  std::int64_t number = 0;
  int const turns = args.served == queue::token_order ? 1 : top_k;  // all first choices before all second ones
#pragma unroll 1
  for (int k = 0; k < turns; ++k) {
    for (std::int64_t begin = 0; begin < pairs; begin += 32 * plan_threads) {
      std::int64_t const at = first + begin + 32 * static_cast<std::int64_t>(threadIdx.x);
      std::int64_t const left = first + pairs - at;
      std::uint32_t bits = left > 0 ? queued.window(queued.of(expert), at, left < 32 ? static_cast<int>(left) : 32) : 0;
      if (turns > 1) {
        std::uint32_t turn = 0;
        for (int bit = static_cast<int>((k + top_k - at % top_k) % top_k); bit < 32; bit += top_k) turn |= 1u << bit;
        bits &= turn;
      }
      scanned const scan = scan_block<plan_threads>(__popc(bits));
      std::int64_t mine = number + scan.before;
      for (; bits != 0; bits &= bits - 1, ++mine) {
        if (mine < slots) continue;
        std::int64_t pair = at + __ffs(static_cast<int>(bits)) - 1;
        if (sorted) pair = std::int64_t{args.order[pair / top_k]} * top_k + pair % top_k;
        args.dropped[pair] = 1;
        args.plan.row_of[pair] = -1;
        // Groups may share a word.
        pair_sets::bit_position const kept = args.kept.bit_of(pair);
        atomicAnd(args.kept.of(expert) + kept.word, ~(1u << kept.bit));
      }
      number += scan.all;
    }
  }
  if (threadIdx.x == 0) {
    args.rows[expert * args.groups + group] = static_cast<std::int32_t>(number < slots ? number : slots);
  }
}

/// Says that the pairs of an expert which computes nothing have no rows.
__device__ inline void assign_none(plan_args const& args, std::int32_t expert) {
  std::int64_t const pairs = tokens_at_hand(args.tokens, args.pass) * args.top_k;
  std::int64_t const words = divide_up(pairs, args.chosen.block_pairs) * args.chosen.block_words();
  std::uint32_t const* const chosen = args.chosen.of(expert);
  for (std::int64_t word = threadIdx.x; word < words; word += plan_threads) {
    std::int64_t const pair = args.chosen.first_pair(word);
    for (std::uint32_t bits = chosen[word]; bits != 0; bits &= bits - 1) {
      args.plan.row_of[pair + __ffs(static_cast<int>(bits)) - 1] = -1;
    }
  }
  if (args.load != nullptr) {
    std::int32_t const load = size_of(chosen, words);
    if (threadIdx.x == 0) args.load[expert] = load;
  }
  if (args.counts != nullptr && threadIdx.x == 0) args.counts[expert] = 0;
}

/// Gives the pairs that an expert keeps their rows, in the order of tokens; no rows between experts are left free. A block for each
/// expert; `Nulls`: those that compute nothing have one, too.
template <int Threads, bool Nulls = false>
__global__ void __launch_bounds__(Threads, 2) assign_rows(plan_args const args) {
  int const experts = args.experts, top_k = args.top_k;
  if constexpr (Nulls) {
    if (static_cast<int>(blockIdx.x) >= experts) return assign_none(args, static_cast<std::int32_t>(blockIdx.x));
  }
  bool const drops = args.rows != nullptr;
  std::int32_t const expert = static_cast<std::int32_t>(blockIdx.x);
  int const thread = static_cast<int>(threadIdx.x);
  std::int64_t const tokens = tokens_at_hand(args.tokens, args.pass);
  std::int64_t const token_blocks = divide_up(tokens * top_k, args.kept.block_pairs);  // of the pass
  std::int64_t const words = token_blocks * args.kept.block_words();
  std::uint32_t const* const kept = args.kept.of(expert);

  std::int32_t const first_row = drops ? sum_of(args.rows, expert * args.groups)
                                       : sum_of(args.below + expert * args.kept.token_blocks, token_blocks);
  std::int32_t row = first_row;
  for (std::int64_t begin = 0; begin < words; begin += plan_threads) {
    std::int64_t const word = begin + thread;
    std::uint32_t bits = word < words ? kept[word] : 0;
    scanned const scan = scan_block<plan_threads>(__popc(bits));
    std::int32_t mine = row + scan.before;
    std::int32_t const pair = static_cast<std::int32_t>(args.kept.first_pair(word));
    for (; bits != 0; bits &= bits - 1, ++mine) {
      std::int32_t const here = pair + __ffs(static_cast<int>(bits)) - 1;
      args.plan.pair_of[mine] = here;
      args.plan.row_of[here] = mine;
    }
    row += scan.all;
  }
  if (thread == 0) {
    if (expert == 0 && args.any_exponent != nullptr) *args.any_exponent = 0;
    args.plan.offsets[expert] = first_row;
    if (expert == experts - 1) args.plan.offsets[experts] = row;
    if (args.counts != nullptr) args.counts[expert] = row - first_row;
  }
  if (args.load != nullptr) {
    std::int32_t const load = drops ? size_of(args.chosen.of(expert), words) : row - first_row;
    if (thread == 0) args.load[expert] = load;
  }

  if (args.renormalises) {  // one token here, the next in the block of the next expert
    for (std::int64_t token = std::int64_t{thread} * experts + expert; token < tokens;
         token += std::int64_t{experts} * plan_threads) {
      std::int64_t const pair = token * top_k;
      float total = 0.0f;
      for (int k = 0; k < top_k; ++k) total += args.dropped[pair + k] != 0 ? 0.0f : args.routed_weights[pair + k];
      total = total < dispatch::least_weight_sum ? dispatch::least_weight_sum : total;  // a NaN stays
      for (int k = 0; k < top_k; ++k) {
        args.weights[pair + k] = args.dropped[pair + k] != 0 ? 0.0f : args.routed_weights[pair + k] / total;
      }
    }
  }
}

}  // namespace switchyard::cuda
