#pragma once

#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/product.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/finite.hpp>
#include <switchyard/layer.hpp>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

/// Step 1 of `backend::cpu`: tokens to logits to expert ids and combine weights.
namespace switchyard::backend::detail {

inline constexpr int route_tokens = 8, route_experts = 32;  // of an item of the router product

/// Keeps the lowest of the values that several workers find.
inline void keep_lowest(std::atomic<std::int64_t>& lowest, std::int64_t value) {
  std::int64_t seen = lowest.load(std::memory_order_relaxed);
  while (value < seen && !lowest.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
}

inline bool is_active(std::uint8_t const* active, std::int64_t token) { return active == nullptr || active[token]; }

/// Weights of the features of tokens, a row of a table for each cluster.
struct feature_weights {
  float const* table = nullptr;  ///< [clusters, hidden]; null: tokens are taken as they are
  std::int32_t const* labels = nullptr;
  std::int64_t label_stride = 1;
  int clusters = 0;
  std::uint8_t const* active = nullptr;

  /// Whether a token has a cluster that does not exist, and so no logits.
  bool lacks_cluster(std::int64_t token) const {
    if (table == nullptr || !is_active(active, token)) return false;
    std::int32_t const label = labels[token * label_stride];
    return label < 0 || label >= clusters;
  }
  /// Null: the token is taken as it is.
  float const* of(std::int64_t token, int hidden) const {
    if (table == nullptr || !is_active(active, token) || lacks_cluster(token)) return nullptr;
    return table + std::int64_t{labels[token * label_stride]} * hidden;
  }
};

/// What the product of tokens and a router weight reads.
template <class Element>
struct router_product {
  view<Element const> tokens;
  int hidden, experts;
  float const* weight;                     ///< [experts, hidden]
  float const* bias = nullptr;             ///< [experts], null: none
  feature_weights features = {};           ///< of `adaptive_clustering`
  float const* inverse_lengths = nullptr;  ///< [experts], factors of the logits; null: none
};

/// logits[t][e] = token t . router weight e (+ bias): float products whatever the tokens are stored as.
template <class Element>
void make_logits(router_product<Element> const& of, cpu_context const& where, float* logits) {
  int const hidden = of.hidden, experts = of.experts;
  int const expert_blocks = static_cast<int>(divide_up(experts, route_experts));
  std::int64_t const tokens = of.tokens.rows;
  std::int64_t const token_blocks = divide_up(tokens, route_tokens);
  row_functions<float> const with = row_functions_of<float>(where.instructions);
  parallel_for(where, token_blocks * expert_blocks, [&](std::int64_t item) {
    std::int64_t const first_token = item / expert_blocks * route_tokens;
    int const rows = static_cast<int>(std::min<std::int64_t>(route_tokens, tokens - first_token));
    int const first = static_cast<int>(item % expert_blocks) * route_experts;
    int const count = std::min(route_experts, experts - first);
    float* const to = logits + first_token * experts + first;
    constexpr int depth = 512;
    float converted[route_tokens * depth], part[route_tokens * route_experts];
    alignas(64) float grouped[route_tokens * row_floats(depth)];
    for (int k = 0; k < hidden; k += depth) {
      int const length = std::min(depth, hidden - k);
      float const* piece[route_tokens] = {};
      for (int r = 0; r < rows; ++r) {
        Element const* const token = of.tokens.row(first_token + r) + k;
        float const* const scale = of.features.of(first_token + r, hidden);
        for (int i = 0; i < length; ++i) {
          float const x = static_cast<float>(token[i]);
          converted[r * depth + i] = scale == nullptr ? x : x * scale[k + i];
        }
        piece[r] = converted + r * depth;
      }
      with.group(piece, rows, length, grouped);
      feature_tile<float> const weights{of.weight + first * std::int64_t{hidden} + k, hidden, 1, count};
      with.multiply(grouped, rows, {length, 0, length}, weights, {}, part, route_experts);
      for (int r = 0; r < rows; ++r) {
        for (int e = 0; e < count; ++e) {
          float const value = part[r * route_experts + e];
          to[std::int64_t{r} * experts + e] = k == 0 ? value : to[std::int64_t{r} * experts + e] + value;
        }
      }
    }
    for (int r = 0; r < rows; ++r) {
      float* const row = to + std::int64_t{r} * experts;
      for (int e = 0; of.inverse_lengths != nullptr && e < count; ++e) row[e] *= of.inverse_lengths[first + e];
      for (int e = 0; of.bias != nullptr && e < count; ++e) row[e] += of.bias[first + e];
      if (of.features.lacks_cluster(first_token + r)) std::fill(row, row + count, not_a_number);
    }
  });
}

/// What the tokens and experts of a call are called in an error, where it is a part of another one.
struct names {
  std::int32_t const* token_of = nullptr;  ///< null: their own numbers
  int first_expert = 0;

  std::string token(std::int64_t t) const { return std::to_string(token_of == nullptr ? t : token_of[t]); }
  std::string expert(std::int64_t e) const { return std::to_string(first_expert + e); }
};

/// Says why a token cannot be routed, unless the router alone knows. Biases are null where the router has none.
inline void fail_unroutable(float const* logits, router_weights const& router, int experts, int top_k,
                            std::string const& token, names const& called) {
  float const* const bias = router.bias;
  float const* const correction = router.correction_bias;
  for (int e = 0; e < experts; ++e) {
    bool const closed = bias != nullptr && bias[e] == -infinity && logits[e] == -infinity;
    if (is_finite(logits[e]) || closed) continue;
    fail("layer::forward, router logits", "finite numbers (are tokens and router weights free of NaN and infinity?)",
         std::to_string(logits[e]) + " for token " + token + ", expert " + called.expert(e));
  }
  for (int e = 0; correction != nullptr && e < experts; ++e) {
    if (is_finite(correction[e]) || correction[e] == -infinity) continue;
    fail("layer::forward, router correction_bias", "finite numbers, or minus infinity to close an expert",
         std::to_string(correction[e]) + " for expert " + called.expert(e));
  }
  int closed = 0;
  for (int e = 0; e < experts; ++e) {
    closed += (bias != nullptr && bias[e] == -infinity) || (correction != nullptr && correction[e] == -infinity);
  }
  if (closed == 0) return;
  fail("layer::forward, router biases",
       "minus infinity for few enough experts to leave " + std::to_string(top_k) + " to choose from, as many as top_k",
       std::to_string(closed) + " of " + std::to_string(experts) + " closed, and too few left for token " + token);
}

[[noreturn]] inline void fail_answer(std::string_view router, int experts, std::int32_t id, float weight,
                                     float priority, std::string const& token, std::int64_t choice) {
  fail("layer::forward, answer of router " + std::string(router),
       "ids from 0 to " + std::to_string(experts - 1) + ", finite weights and priority",
       "id " + std::to_string(id) + ", weight " + std::to_string(weight) + ", priority " + std::to_string(priority) +
           " for token " + token + ", choice " + std::to_string(choice));
}

/// Asks the router about every active token. Unless the context says otherwise, throws when a token cannot be routed. Throws
/// when a router that is not the library's answers with an expert that does not exist or a weight that is not finite.
template <class Router, int Experts, int TopK>
void select_experts(std::int64_t tokens, std::uint8_t const* active, router_weights const& router,
                    cpu_context const& where, float const* logits, std::int32_t* experts_out, float* weights,
                    float* priority, names const& called = {}) {
  constexpr std::int64_t none = std::numeric_limits<std::int64_t>::max();
  std::atomic<std::int64_t> unroutable{none}, bad_pair{none};
  parallel_for(where, divide_up(tokens, route_tokens), [&](std::int64_t item) {
    std::int64_t const end = std::min(tokens, (item + 1) * route_tokens);
    for (std::int64_t token = item * route_tokens; token < end; ++token) {
      route<TopK> chosen{};
      if (is_active(active, token)) {
        per_expert<Experts, serial_lanes> mine;
        for (int e = 0; e < Experts; ++e) mine.value[e] = logits[token * Experts + e];
        chosen = decide<Router, TopK>(serial_lanes{}, mine, router);
        if (chosen.expert[0] < 0) keep_lowest(unroutable, token);
      } else {
        for (int& e : chosen.expert) e = -1;
      }
      for (int k = 0; k < TopK; ++k) {
        bool const finite = is_finite(chosen.weight[k]) && is_finite(chosen.priority);
        if (chosen.expert[k] >= Experts || (chosen.expert[k] >= 0 && !finite)) keep_lowest(bad_pair, token * TopK + k);
        experts_out[token * TopK + k] = chosen.expert[k];
        weights[token * TopK + k] = chosen.weight[k];
      }
      priority[token] = chosen.priority;
    }
  });
  if (std::int64_t const at = unroutable.load(); at != none && where.unroutable == unroutable_tokens::throw_error) {
    router_weights read = router;
    if constexpr (!Router::traits.bias) read.bias = nullptr;
    if constexpr (!Router::traits.correction_bias) read.correction_bias = nullptr;
    fail_unroutable(logits + at * Experts, read, Experts, TopK, called.token(at), called);
    fail_answer(Router::name, Experts, -1, weights[at * TopK], priority[at], called.token(at), 0);
  }
  if (std::int64_t const at = bad_pair.load(); at != none) {
    fail_answer(Router::name, Experts, experts_out[at], weights[at], priority[at / TopK], called.token(at / TopK),
                at % TopK);
  }
}

/// Takes over the caller's routes. Unless the context says otherwise, throws when an id is out of range or a weight is not
/// finite.
inline void copy_routes(precomputed_routes const& routes, std::int64_t tokens, int top_k, int experts,
                        std::uint8_t const* active, cpu_context const& where, std::int32_t* experts_out, float* weights,
                        float* priority) {
  bool const throws = where.unroutable == unroutable_tokens::throw_error;
  for (std::int64_t token = 0; token < tokens; ++token) {
    bool const routed = is_active(active, token);
    for (std::int64_t pair = token * top_k; pair < (token + 1) * top_k; ++pair) {
      std::int32_t const expert = routes.experts[pair];
      float const weight = routes.weights[pair];
      auto const place = [&] {
        return " for token " + std::to_string(token) + ", choice " + std::to_string(pair - token * top_k);
      };
      bool const elsewhere = !routed || expert == -1;
      bool const exists = expert >= 0 && expert < experts;
      if (throws && !elsewhere && !exists) {
        fail("layer::forward, routes.experts", "ids from 0 to " + std::to_string(experts - 1) + ", or -1 for none",
             std::to_string(expert) + place());
      }
      if (throws && !elsewhere && !is_finite(weight)) {
        fail("layer::forward, routes.weights", "finite numbers", std::to_string(weight) + place());
      }
      experts_out[pair] = !elsewhere && exists ? expert : -1;
      weights[pair] = elsewhere ? 0.0f : exists ? weight : not_a_number;
    }
    float const first = routes.weights[token * top_k];
    priority[token] = routed && is_finite(first) ? first : 0.0f;
  }
}

}  // namespace switchyard::backend::detail
