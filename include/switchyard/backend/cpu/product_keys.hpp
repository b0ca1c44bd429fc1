#pragma once

#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/route.hpp>
#include <switchyard/backend/cpu/steps.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/finite.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/layer.hpp>
#include <switchyard/router/product_keys.hpp>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

/// Routes by product keys: half scores of all keys by products, then a token's best experts of each head.
namespace switchyard::cpu {

/// Scoring and choosing of one instruction set: see product_keys.inl.
template <class Query>
struct product_key_kernels {
  void (*group)(Query const* const* rows, int row_count, int depth, float* to);
  void (*score)(float const* rows, int row_count, int depth, float const* weights, std::int64_t stride, int keys,
                bool first, float* to, std::int64_t to_stride);
  bool (*choose)(float const* first, float const* second, int keys, int kept, std::int32_t* experts, float* scores);
  void (*soften)(float const* scores, int count, float largest, float* weights);
};
template <class Query>
product_key_kernels<Query> product_key_kernels_of(instruction_set set) {
#if defined(__x86_64__)
  if (set >= instruction_set::avx512)
    return {&avx512::group_scored_rows<Query>, &avx512::score_keys, &avx512::choose_pairs, &avx512::soften_scores};
  if (set == instruction_set::avx2)
    return {&avx2::group_scored_rows<Query>, &avx2::score_keys, &avx2::choose_pairs, &avx2::soften_scores};
#else
  (void)set;
#endif
  return {&portable::group_scored_rows<Query>, &portable::score_keys, &portable::choose_pairs,
          &portable::soften_scores};
}

/// The halves of queries and of keys.
template <class Query>
struct half_products {
  view<Query const> queries;
  int head_columns;  ///< from one head's query to the next; 0: all have the same
  int half_width, keys, heads;
  float const* weights[2];  ///< [heads, keys, half_width]
  float* scores[2];         ///< [heads, tokens, keys]
};

/// scores[half][h][t][i] = half a query of head h, token t . key i. The order of terms depends on the width alone.
template <class Query>
void score_halves(half_products<Query> const& of, cpu_context const& context) {
  constexpr int rows_at_once = 16, depth_at_once = 512;
  std::int64_t const tokens = of.queries.rows;
  // Tokens are converted again for each block of keys; few tokens leave more blocks to other workers.
  int const keys_at_once = tokens >= rows_at_once ? 64 : 32;
  std::int64_t const key_blocks = divide_up(of.keys, keys_at_once),
                     blocks = key_blocks * divide_up(tokens, rows_at_once);
  product_key_kernels<Query> const kernels = product_key_kernels_of<Query>(context.instructions);
  parallel_for(context, 2 * of.heads * blocks, [&](std::int64_t item) {
    std::int64_t const head = item / blocks / 2, half = item / blocks % 2,
                       first_token = item % blocks / key_blocks * rows_at_once;
    int const first = static_cast<int>(item % key_blocks) * keys_at_once,
              count = std::min(keys_at_once, of.keys - first);
    int const rows = static_cast<int>(std::min<std::int64_t>(rows_at_once, tokens - first_token));
    float const* const keys = of.weights[half] + (head * of.keys + first) * of.half_width;
    float* const to = of.scores[half] + (head * tokens + first_token) * of.keys + first;
    alignas(64) float grouped[rows_at_once * depth_at_once];
    for (int k = 0; k < of.half_width; k += depth_at_once) {
      int const depth = std::min(depth_at_once, of.half_width - k);
      Query const* row[rows_at_once] = {};
      for (int r = 0; r < rows; ++r)
        row[r] = of.queries.row(first_token + r) + head * of.head_columns + half * of.half_width + k;
      kernels.group(row, rows, depth, grouped);
      kernels.score(grouped, rows, depth, keys + k, of.half_width, count, k == 0, to, of.keys);
    }
  });
}

/// Takes all pairs in the order of their ids. False where a half score or a sum is not finite.
inline bool take_all_pairs(float const* first, float const* second, int keys, std::int32_t* experts, float* scores) {
  bool finite = true;
  for (int i = 0; i < keys * keys; ++i) {
    experts[i] = i;
    scores[i] = first[i / keys] + second[i % keys];
    finite = finite && is_finite(first[i / keys]) && is_finite(second[i % keys]) && is_finite(scores[i]);
  }
  return finite;
}

/// The combine weights of one list of scores, which may stand in the same place.
template <class Weighting, int Kept>
void weigh_scores(product_key_kernels<float> const& kernels, float const* scores, float* weights) {
  if constexpr (std::is_same_v<Weighting, router::weighting::softmax>) {
    kernels.soften(scores, Kept, *std::max_element(scores, scores + Kept), weights);
  } else {
    for (int k = 0; k < Kept; ++k) {
      float one[1] = {scores[k]};
      Weighting::apply(one);
      weights[k] = one[0];
    }
  }
}

template <>
struct route_step<router::from_product_keys> {
  /// Half scores of so many tokens stand in memory at a time.
  static constexpr std::int64_t most_tokens = 64;

  template <class Layer>
  struct memory {
    using router = typename Layer::router;
    static constexpr int width = router::query::width(Layer::dims.hidden);
    float* queries = nullptr;             // [tokens at a time, heads * width]
    float *first_scores, *second_scores;  // [heads, tokens at a time, keys]

    constexpr memory(carver& from, std::int64_t all_tokens) {
      std::int64_t const tokens = all_tokens < most_tokens ? all_tokens : most_tokens;
      if constexpr (router::query::is_projected) queries = from.take<float>(tokens * router::heads * width);
      first_scores = from.take<float>(router::heads * tokens * router::keys);
      second_scores = from.take<float>(router::heads * tokens * router::keys);
    }
  };

  template <class Layer>
  static void run(forward_args<Layer> const& args, cpu_context const& context, memory<Layer> const& m, routes const& to,
                  names const& called) {
    std::int64_t unroutable = std::numeric_limits<std::int64_t>::max();
    for (std::int64_t first = 0; first < args.tokens.rows; first += most_tokens) {
      std::int64_t const tokens = std::min(most_tokens, args.tokens.rows - first);
      make_scores(args, context, m, first, tokens);
      unroutable = std::min(unroutable, choose(args, context, m, first, tokens, to));
    }
    if (unroutable < args.tokens.rows && context.unroutable == unroutable_tokens::throw_error) {
      fail("layer::forward, scores of router::product_keys",
           "finite numbers (are tokens, query and keys free of NaN and infinity?)",
           "one that is not, for token " + called.token(unroutable));
    }
  }

  template <class Layer>
  static void report(forward_args<Layer> const&, memory<Layer> const&) {}
  template <class Layer>
  static void auxiliary(forward_args<Layer> const&, memory<Layer> const&, routes const&, std::uint8_t const*) {}
  template <class Layer>
  static view<typename Layer::element const> tokens_of_experts(forward_args<Layer> const& args, memory<Layer> const&) {
    return args.tokens;
  }

 private:
  /// Both half scores of `tokens` tokens for every head.
  template <class Layer>
  static void make_scores(forward_args<Layer> const& args, cpu_context const& context, memory<Layer> const& m,
                          std::int64_t first, std::int64_t tokens) {
    using router = typename Layer::router;
    using element = typename Layer::element;
    constexpr int width = memory<Layer>::width, half_width = width / 2;
    switchyard::router::product_key_weights const w = args.weights.router;
    view<element const> const seen{args.tokens.row(first), tokens, args.tokens.columns, args.tokens.row_stride};
    auto const scores = [&]<class Query>(view<Query const> const& queries, int head_columns) {
      half_products<Query> const of{queries,
                                    head_columns,
                                    half_width,
                                    router::keys,
                                    router::heads,
                                    {w.first_keys, w.second_keys},
                                    {m.first_scores, m.second_scores}};
      score_halves(of, context);
    };
    if constexpr (router::query::is_projected) {
      constexpr int columns = router::heads * width;
      make_logits(router_product<element>{seen, Layer::dims.hidden, columns, w.query, w.query_bias}, context,
                  m.queries);
      scores(view<float const>{m.queries, tokens, columns}, width);
    } else {
      scores(seen, 0);
    }
  }

  /// Routes of these tokens; returns the lowest that cannot be routed.
  template <class Layer>
  static std::int64_t choose(forward_args<Layer> const& args, cpu_context const& context, memory<Layer> const& m,
                             std::int64_t first, std::int64_t tokens, routes const& to) {
    using router = typename Layer::router;
    constexpr int keys = router::keys, kept = router::template kept<Layer>, lists = router::choices;
    constexpr int top_k = Layer::dims.top_k;
    product_key_kernels<float> const kernels = product_key_kernels_of<float>(context.instructions);
    std::atomic<std::int64_t> unroutable{std::numeric_limits<std::int64_t>::max()};
    parallel_for(context, tokens * lists, [&](std::int64_t item) {
      std::int64_t const token = item / lists, list = item % lists, pair = (first + token) * top_k + list * kept;
      std::int32_t* const experts = to.experts + pair;
      float* const weights = to.weights + pair;
      float* const scores = args.report.scores != nullptr ? args.report.scores + pair : weights;
      bool chosen = is_active(args.active, first + token);
      if (!chosen) {
        std::fill(weights, weights + kept, 0.0f);
      } else {
        float* const of_first = m.first_scores + (list * tokens + token) * keys;
        float* const of_second = m.second_scores + (list * tokens + token) * keys;
        for (int head = 1; router::sums_heads && head < router::heads; ++head) {
          for (int i = 0; i < keys; ++i) of_first[i] += of_first[head * tokens * keys + i];
          for (int i = 0; i < keys; ++i) of_second[i] += of_second[head * tokens * keys + i];
        }
        if constexpr (kept == keys * keys) {
          chosen = take_all_pairs(of_first, of_second, keys, experts, scores);
        } else {
          chosen = kernels.choose(of_first, of_second, keys, kept, experts, scores);
        }
        if (chosen) {
          weigh_scores<typename router::weighting, kept>(kernels, scores, weights);
        } else {
          std::fill(weights, weights + kept, not_a_number);
          keep_lowest(unroutable, first + token);
        }
      }
      if (!chosen) {
        std::fill(experts, experts + kept, -1);
        if (scores != weights) std::copy(weights, weights + kept, scores);
      }
      if (list == 0) to.priority[first + token] = chosen ? weights[0] : 0.0f;
    });
    return unroutable.load();
  }
};

}  // namespace switchyard::cpu
