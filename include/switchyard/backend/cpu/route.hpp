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
  std::uint8_t const* active = nullptr;

  /// Null: the token is taken as it is.
  float const* of(std::int64_t token, int hidden) const {
    if (table == nullptr || !is_active(active, token)) return nullptr;
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
    constexpr int depth = 1024;
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
      multiply_rows(with, {grouped, rows}, weights, length, {}, part, route_experts);
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

[[noreturn]] inline void fail_logit(float value, std::string const& token, std::string const& expert) {
  fail("layer::forward, router logits", "finite numbers (are tokens and router weights free of NaN and infinity?)",
       std::to_string(value) + " for token " + token + ", expert " + expert);
}

[[noreturn]] inline void fail_answer(std::string_view router, int experts, std::int32_t id, float weight,
                                     float priority, std::string const& token, std::int64_t choice) {
  fail("layer::forward, answer of router " + std::string(router),
       "ids from 0 to " + std::to_string(experts - 1) + ", finite weights and priority",
       "id " + std::to_string(id) + ", weight " + std::to_string(weight) + ", priority " + std::to_string(priority) +
           " for token " + token + ", choice " + std::to_string(choice));
}

/// Throws where a correction bias is not finite.
inline void check_correction_bias(float const* bias, int experts, names const& called) {
  for (int e = 0; e < experts; ++e) {
    if (is_finite(bias[e])) continue;
    fail("layer::forward, router correction_bias", "finite numbers",
         std::to_string(bias[e]) + " for expert " + called.expert(e));
  }
}

/// Asks the router about every active token. Throws when a logit or a correction bias is not finite, or when a
/// router that is not the library's answers with an expert that does not exist or a weight that is not finite.
template <class Router, int Experts, int TopK>
void select_experts(std::int64_t tokens, std::uint8_t const* active, router_weights const& router,
                    cpu_context const& where, float const* logits, std::int32_t* experts_out, float* weights,
                    float* priority, names const& called = {}) {
  if constexpr (Router::traits.correction_bias) check_correction_bias(router.correction_bias, Experts, called);
  constexpr std::int64_t none = std::numeric_limits<std::int64_t>::max();
  std::atomic<std::int64_t> bad{none}, bad_pair{none};
  parallel_for(where, divide_up(tokens, route_tokens), [&](std::int64_t item) {
    std::int64_t const end = std::min(tokens, (item + 1) * route_tokens);
    for (std::int64_t token = item * route_tokens; token < end; ++token) {
      route<TopK> chosen{};
      if (is_active(active, token)) {
        per_expert<Experts, serial_lanes> mine;
        bool finite = true;
        for (int e = 0; e < Experts; ++e) {
          mine.value[e] = logits[token * Experts + e];
          if (!is_finite(mine.value[e])) {
            keep_lowest(bad, token * Experts + e);
            finite = false;
          }
        }
        if (!finite) continue;
        chosen = Router::template select<TopK>(serial_lanes{}, mine, router);
      } else {
        for (int& e : chosen.expert) e = -1;
      }
      bool const routed = is_active(active, token);
      for (int k = 0; k < TopK; ++k) {
        bool const exists = chosen.expert[k] < Experts && (chosen.expert[k] >= 0 || !routed);
        if (!exists || !is_finite(chosen.weight[k]) || !is_finite(chosen.priority)) {
          keep_lowest(bad_pair, token * TopK + k);
        }
        experts_out[token * TopK + k] = chosen.expert[k];
        weights[token * TopK + k] = chosen.weight[k];
      }
      priority[token] = chosen.priority;
    }
  });
  if (std::int64_t const at = bad.load(); at != none) {
    fail_logit(logits[at], called.token(at / Experts), called.expert(at % Experts));
  }
  if (std::int64_t const at = bad_pair.load(); at != none) {
    fail_answer(Router::name, Experts, experts_out[at], weights[at], priority[at / TopK], called.token(at / TopK),
                at % TopK);
  }
}

/// Takes over the caller's routes. Throws when an id is out of range or a weight is not finite.
inline void copy_routes(precomputed_routes const& routes, std::int64_t tokens, int top_k, int experts,
                        std::uint8_t const* active, std::int32_t* experts_out, float* weights, float* priority) {
  for (std::int64_t token = 0; token < tokens; ++token) {
    bool const routed = is_active(active, token);
    for (std::int64_t pair = token * top_k; pair < (token + 1) * top_k; ++pair) {
      std::int32_t const expert = routes.experts[pair];
      float const weight = routes.weights[pair];
      auto const place = [&] {
        return " for token " + std::to_string(token) + ", choice " + std::to_string(pair - token * top_k);
      };
      if (routed && (expert < 0 || expert >= experts)) {
        fail("layer::forward, routes.experts", "ids from 0 to " + std::to_string(experts - 1),
             std::to_string(expert) + place());
      }
      if (routed && !is_finite(weight)) {
        fail("layer::forward, routes.weights", "finite numbers", std::to_string(weight) + place());
      }
      experts_out[pair] = routed ? expert : -1;
      weights[pair] = routed ? weight : 0.0f;
    }
    priority[token] = weights[token * top_k];
  }
}

}  // namespace switchyard::backend::detail
