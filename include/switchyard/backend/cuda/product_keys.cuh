#pragma once

#include <switchyard/backend/cuda/block_sums.cuh>
#include <switchyard/backend/cuda/launch.cuh>
#include <switchyard/backend/cuda/linear_map.cuh>
#include <switchyard/backend/cuda/pass_size.cuh>
#include <switchyard/backend/cuda/route.cuh>
#include <switchyard/backend/cuda/steps.cuh>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/finite.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/layer.hpp>
#include <switchyard/router/precomputed.hpp>
#include <switchyard/router/product_keys.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

/// Routes by product keys on a GPU: half scores of all keys by products, then a block for each list of a token's best experts.
namespace switchyard::cuda {

/// Half scores: [heads, rows, keys].
struct key_scores {
  float* to;
  std::int64_t rows;
  int keys;
  __device__ void operator()(std::int64_t head, std::int64_t row, int key, float score) const {
    to[(head * rows + row) * keys + key] = score;
  }
};

/// What a block that chooses reads and writes.
struct key_choice {
  float const *first, *second;  ///< [heads, tokens, keys], half scores of some tokens
  std::int64_t tokens;          ///< so many
  std::uint8_t const* active;   ///< of those, null: all
  std::int32_t* experts;        ///< [tokens, top_k], of those
  float *weights, *scores;      ///< the same; null: nobody asks for scores
  float* priority;              ///< [tokens], null: nobody asks
  std::int32_t unroutable;      ///< what stands for an expert of a list with a score that is not finite
};

/// How a block chooses.
template <int Keys, int Kept>
struct key_choice_tile {
  static constexpr bool all = Kept == Keys * Keys;
  static constexpr int threads = 128, warps = threads / 32;
  static constexpr int most = Kept < Keys ? Kept : Keys;  ///< keys of a half that may be chosen
  static constexpr int pairs() {
    int count = 0;
    for (int rank = 0; rank < most; ++rank) count += product_key::partners(rank, Kept, most);
    return count;
  }
  static constexpr int scored_bytes = all ? 0 : pairs() * static_cast<int>(sizeof(product_key::scored));
  static constexpr int halves_bytes = 2 * Keys * 4 + (all ? 0 : 2 * most * static_cast<int>(sizeof(candidate)));
  static constexpr std::size_t shared_bytes =
      static_cast<std::size_t>(halves_bytes + (scored_bytes + 15) / 16 * 16 + Kept * 4 + 16);
};

/// The best `most` of a half's keys in the order of choice. The value of the last one is found bit by bit; keys above it, and as many of
/// its equals as there is room for, are ranked by counting.
template <int Keys, int Most, int Threads>
__device__ void best_keys_of_block(float const* values, candidate* best) {
  int const thread = static_cast<int>(threadIdx.x);
  if constexpr (Most == Keys) {
    for (int i = thread; i < Keys; i += Threads) {
      int rank = 0;
      for (int j = 0; j < Keys; ++j) rank += precedes(candidate{values[j], j}, candidate{values[i], i}) ? 1 : 0;
      best[rank] = {values[i], i};
    }
  } else {
    constexpr int items = (Keys + Threads - 1) / Threads, warps = Threads / 32;
    __shared__ int counts[2][warps], found;
    __shared__ std::int16_t chosen[Most];
    // Bits in the order of the numbers that they are; none for a key that does not exist.
    std::uint32_t keys[items];
#pragma unroll
    for (int i = 0; i < items; ++i) {
      int const key = i * Threads + thread;
      std::uint32_t const bits = __float_as_uint(values[key < Keys ? key : 0] + 0.0f);
      keys[i] = key >= Keys ? 0 : (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
    }
    int turn = 0;
    auto const count_not_below = [&](std::uint32_t least) {
      int count = 0;
#pragma unroll
      for (int i = 0; i < items; ++i) count += keys[i] >= least ? 1 : 0;
      count = sum_over_warp(count);
      turn ^= 1;
      if (thread % 32 == 0) counts[turn][thread / 32] = count;
      __syncthreads();
      int all = 0;
      for (int of_warp : counts[turn]) all += of_warp;
      return all;
    };
    std::uint32_t last = 0;
    for (std::uint32_t bit = 0x80000000u; bit != 0; bit /= 2) {
      if (count_not_below(last | bit) >= Most) last |= bit;
    }
    if (thread == 0) found = 0;
    int const above = count_not_below(last + 1);
    int taken = above;  // and of the equals those with the lowest ids
#pragma unroll
    for (int i = 0; i < items; ++i) {
      auto const key = static_cast<std::int16_t>(i * Threads + thread);
      if (keys[i] > last) chosen[atomicAdd(&found, 1)] = key;
      unsigned const equals = __ballot_sync(~0u, keys[i] == last);
      turn ^= 1;
      if (thread % 32 == 0) counts[turn][thread / 32] = __popc(equals);
      __syncthreads();
      int place = taken + __popc(equals & ((1u << thread % 32) - 1u));
      for (int w = 0; w < warps; ++w) {
        if (w < thread / 32) place += counts[turn][w];
        taken += counts[turn][w];
      }
      if (keys[i] == last && place < Most) chosen[place] = key;
    }
    __syncthreads();
    for (int i = thread; i < Most; i += Threads) {
      candidate const mine{values[chosen[i]], chosen[i]};
      int rank = 0;
      for (int j = 0; j < Most; ++j) rank += precedes(candidate{values[chosen[j]], chosen[j]}, mine) ? 1 : 0;
      best[rank] = mine;
    }
  }
  __syncthreads();
}

/// The combine weights of a block's scores, in shared memory, in place.
template <class Weighting, int Kept, int Threads>
__device__ void weigh_scores_of_block(float* scores) {
  int const thread = static_cast<int>(threadIdx.x);
  if constexpr (std::is_same_v<Weighting, router::weighting::softmax>) {
    float largest = -infinity;
    for (int k = thread; k < Kept; k += Threads) largest = scores[k] > largest ? scores[k] : largest;
    __shared__ float largest_of[Threads / 32];
    for (int distance = 16; distance > 0; distance /= 2) {
      float const other = __shfl_xor_sync(~0u, largest, distance);
      largest = other > largest ? other : largest;
    }
    if (thread % 32 == 0) largest_of[thread / 32] = largest;
    __syncthreads();
    for (float of : largest_of) largest = of > largest ? of : largest;
    float total = 0.0f;
    for (int k = thread; k < Kept; k += Threads) total += scores[k] = std::exp(scores[k] - largest);
    total = sum_over_block<Threads / 32>(total);
    for (int k = thread; k < Kept; k += Threads) scores[k] /= total;
  } else {
    for (int k = thread; k < Kept; k += Threads) {
      float one[1] = {scores[k]};
      Weighting::apply(one);
      scores[k] = one[0];
    }
  }
}

/// Chooses one list of a token: a block for each. Sums of halves are compared without rounding, so that every backend chooses the same.
template <int Keys, int Kept, int Lists, int HeadsSummed, class Weighting>
__global__ void __launch_bounds__(128) choose_pairs(key_choice const of) {
  using tile = key_choice_tile<Keys, Kept>;
  constexpr int threads = tile::threads, most = tile::most;
  extern __shared__ __align__(128) char memory[];
  float* const first = reinterpret_cast<float*>(memory);
  float* const second = first + Keys;
  candidate* const best_first = reinterpret_cast<candidate*>(second + Keys);
  candidate* const best_second = best_first + most;
  auto* const scored = reinterpret_cast<product_key::scored*>(memory + tile::halves_bytes);
  float* const scores = reinterpret_cast<float*>(memory + tile::halves_bytes + (tile::scored_bytes + 15) / 16 * 16);

  int const thread = static_cast<int>(threadIdx.x);
  std::int64_t const token = blockIdx.x / Lists, list = blockIdx.x % Lists, pair = (token * Lists + list) * Kept;
  bool const active = of.active == nullptr || of.active[token] != 0;
  bool finite = true;
  if (active) {
    for (int i = thread; i < Keys; i += threads) {
      float sums[2] = {};
      for (int head = 0; head < HeadsSummed; ++head) {
        std::int64_t const at = ((list + head) * of.tokens + token) * Keys + i;
        sums[0] += of.first[at];
        sums[1] += of.second[at];
      }
      first[i] = sums[0];
      second[i] = sums[1];
      finite = finite && is_finite(sums[0]) && is_finite(sums[1]);
    }
  }
  bool routable = __syncthreads_and(finite) != 0 && active;
  if (routable) {
    if constexpr (tile::all) {
      for (int k = thread; k < Kept; k += threads) {
        scores[k] = first[k / Keys] + second[k % Keys];
        finite = finite && is_finite(scores[k]);
        of.experts[pair + k] = k;
      }
    } else {
      best_keys_of_block<Keys, most, threads>(first, best_first);
      best_keys_of_block<Keys, most, threads>(second, best_second);
      int count = 0;
      for (int rank = 0; rank < most; ++rank) {
        int const partners = product_key::partners(rank, Kept, most);
        for (int partner = thread; partner < partners; partner += threads) {
          candidate const u = best_first[rank], v = best_second[partner];
          scored[count + partner] = {product_key::score_of(u.value, v.value), u.id * Keys + v.id};
        }
        count += partners;
      }
      __syncthreads();
      for (int i = thread; i < count; i += threads) {
        product_key::scored const mine = scored[i];
        int rank = 0;
        for (int j = 0; j < count; ++j) rank += product_key::precedes(scored[j], mine) ? 1 : 0;
        if (rank >= Kept) continue;
        scores[rank] = mine.of.sum;
        finite = finite && is_finite(mine.of.sum);
        of.experts[pair + rank] = mine.id;
      }
    }
  }
  routable = __syncthreads_and(finite) != 0 && routable;
  if (!routable) {
    float const weight = active ? not_a_number : 0.0f;
    for (int k = thread; k < Kept; k += threads) {
      of.experts[pair + k] = active ? of.unroutable : -1;
      of.weights[pair + k] = weight;
      if (of.scores != nullptr) of.scores[pair + k] = weight;
    }
    if (of.priority != nullptr && list == 0 && thread == 0) of.priority[token] = 0.0f;
    return;
  }
  for (int k = thread; of.scores != nullptr && k < Kept; k += threads) of.scores[pair + k] = scores[k];
  __syncthreads();
  weigh_scores_of_block<Weighting, Kept, threads>(scores);
  __syncthreads();
  for (int k = thread; k < Kept; k += threads) of.weights[pair + k] = scores[k];
  if (of.priority != nullptr && list == 0 && thread == 0) of.priority[token] = scores[0];
}

template <>
struct route_step<router::from_product_keys> {
  /// Half scores of so many tokens stand in memory at a time.
  static constexpr std::int64_t most_tokens = 1024;

  template <class Layer>
  struct memory {
    using router = typename Layer::router;
    static constexpr int width = router::query::width(Layer::dims.hidden);
    float* queries = nullptr;  // [tokens at a time, heads * width]
    float *first, *second;     // [heads, tokens at a time, keys]

    constexpr memory(carver& from, std::int64_t all_tokens) {
      std::int64_t const tokens = all_tokens < most_tokens ? all_tokens : most_tokens;
      if constexpr (router::query::is_projected) queries = from.take<float>(tokens * router::heads * width);
      first = from.take<float>(router::heads * tokens * router::keys);
      second = from.take<float>(router::heads * tokens * router::keys);
    }
  };
  static constexpr std::int64_t least_block_tokens = take_pairs_tile::tokens;
  template <class Layer>
  static constexpr std::int64_t block_tokens(std::int64_t) {
    return take_pairs_tile::tokens;
  }

  template <class Layer>
  static void enqueue(forward_args<Layer> const& args, launch_queue const& queue, memory<Layer> const& m,
                      route_results const& results, pass_size const*) {
    using router = typename Layer::router;
    constexpr shape dims = Layer::dims;
    constexpr int kept = router::template kept<Layer>, lists = router::choices;
    using tile = key_choice_tile<router::keys, kept>;
    static_assert(tile::shared_bytes <= least_shared_bytes,
                  "switchyard: backend::cuda chooses a list of product keys in the shared memory of a block, which has "
                  "no room for so "
                  "many keys and so many kept ones. Lower shape.top_k, or have fewer keys.");
    bool const planned = results.chosen.words != nullptr;
    for (std::int64_t begin = 0; begin < args.tokens.rows; begin += most_tokens) {
      std::int64_t const left = args.tokens.rows - begin, tokens = left < most_tokens ? left : most_tokens;
      enqueue_scores(args, queue, m, begin, tokens);
      key_choice const choice{
          .first = m.first,
          .second = m.second,
          .tokens = tokens,
          .active = args.active == nullptr ? nullptr : args.active + begin,
          .experts = results.experts + begin * dims.top_k,
          .weights = results.weights + begin * dims.top_k,
          .scores = args.report.scores == nullptr ? nullptr : args.report.scores + begin * dims.top_k,
          .priority = results.priority == nullptr ? nullptr : results.priority + begin,
          .unroutable = planned ? -2 : -1};
      launch(queue, "choose_pairs", choose_pairs < router::keys, kept, lists, router::sums_heads ? router::heads : 1,
             typename router::weighting >, tokens * lists, tile::threads, tile::shared_bytes, choice);
    }
    // A plan wants the sets of pairs, too.
    if (planned && args.tokens.rows > 0) {
      constexpr std::size_t shared_bytes = take_pairs_tile::shared_bytes(dims.experts, dims.top_k);
      if constexpr (shared_bytes <= most_shared_bytes) {
        launch(queue, "take_pairs", take_pairs<switchyard::router::precomputed, precomputed_routes, take_pairs_tile>,
               results.chosen.token_blocks, take_pairs_tile::threads, shared_bytes,
               precomputed_routes{results.experts, results.weights}, args.tokens.rows, dims.experts, dims.top_k,
               args.active, results);
      } else {
        static_assert(
            !requires { typename Layer::expert::activation; } || requires { typename Layer::expert::schedule; },
            "switchyard: backend::cuda keeps the pairs of 32 tokens in shared memory, a bit for every expert, which "
            "has no "
            "room for so many experts and choices. Use fewer of them, or experts that are rows.");
      }
    }
  }
  template <class Layer>
  static void enqueue_auxiliary(forward_args<Layer> const&, launch_queue const&, memory<Layer> const&,
                                plan_memory const&, pass_size const*, double*) {}
  template <class Layer>
  static view<typename Layer::element const> tokens_of_experts(forward_args<Layer> const& args, memory<Layer> const&) {
    return args.tokens;
  }

 private:
  /// Both half scores of some tokens for every head.
  template <class Layer>
  static void enqueue_scores(forward_args<Layer> const& args, launch_queue const& queue, memory<Layer> const& m,
                             std::int64_t begin, std::int64_t tokens) {
    using router = typename Layer::router;
    using element = typename Layer::element;
    constexpr int width = memory<Layer>::width, half_width = width / 2;
    switchyard::router::product_key_weights const w = args.weights.router;
    auto const scores = [&]<class Row>(Row const* rows, std::int64_t row_stride, int head_columns) {
      linear_map<Row, float> of{.rows = rows,
                                .row_stride = row_stride,
                                .row_count = tokens,
                                .head_columns = head_columns,
                                .weight = w.first_keys,
                                .bias = nullptr,
                                .heads = router::heads,
                                .features = router::keys,
                                .depth = half_width};
      enqueue_map(queue, of, key_scores{m.first, tokens, router::keys});
      of.rows += half_width;
      of.weight = w.second_keys;
      enqueue_map(queue, of, key_scores{m.second, tokens, router::keys});
    };
    if constexpr (router::query::is_projected) {
      constexpr int columns = router::heads * width;
      enqueue_map(queue,
                  linear_map<element, float>{.rows = args.tokens.row(begin),
                                             .row_stride = args.tokens.row_stride,
                                             .row_count = tokens,
                                             .weight = w.query,
                                             .bias = w.query_bias,
                                             .features = columns,
                                             .depth = Layer::dims.hidden},
                  key_scores{m.queries, tokens, columns});
      scores(static_cast<float const*>(m.queries), columns, width);
    } else {
      scores(args.tokens.row(begin), args.tokens.row_stride, 0);
    }
  }
};

}  // namespace switchyard::cuda
