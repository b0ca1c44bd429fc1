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

/// The weights of a token's features in a table by cluster; null: the token is taken as it is.
template <class Layer>
float const* feature_scale_of(forward_args<Layer> const& args, float const* table, std::int64_t token) {
  if constexpr (Layer::router_traits.clustering.scales) {
    if (!is_active(args.active, token)) return nullptr;
    return table + std::int64_t{args.clusters.labels[token * args.clusters.choices]} * Layer::dims.hidden;
  } else {
    return nullptr;
  }
}

/// logits[t][e] = token t . router weight e (+ bias): float products whatever the tokens are stored as. With
/// `adaptive_clustering`, `feature_scale` is a table by cluster, and `inverse_lengths` may have a factor for each expert.
template <class Layer>
void make_logits(forward_args<Layer> const& args, router_weights const& router, cpu_context const& where, float* logits,
                 float const* feature_scale = nullptr, float const* inverse_lengths = nullptr) {
  using element = typename Layer::element;
  constexpr int hidden = Layer::dims.hidden, experts = Layer::dims.experts;
  constexpr int expert_blocks = static_cast<int>(divide_up(experts, route_experts));
  std::int64_t const tokens = args.tokens.rows;
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
        element const* const token = args.tokens.row(first_token + r) + k;
        float const* const scale = feature_scale_of<Layer>(args, feature_scale, first_token + r);
        for (int i = 0; i < length; ++i) {
          float const x = static_cast<float>(token[i]);
          converted[r * depth + i] = scale == nullptr ? x : x * scale[k + i];
        }
        piece[r] = converted + r * depth;
      }
      with.group(piece, rows, length, grouped);
      feature_tile<float> const weights{router.weight + first * std::int64_t{hidden} + k, hidden, 1, count};
      multiply_rows(with, {grouped, rows}, weights, length, {}, part, route_experts);
      for (int r = 0; r < rows; ++r) {
        for (int e = 0; e < count; ++e) {
          float const value = part[r * route_experts + e];
          to[r * experts + e] = k == 0 ? value : to[r * experts + e] + value;
        }
      }
    }
    if (inverse_lengths != nullptr) {
      for (int r = 0; r < rows; ++r) {
        for (int e = 0; e < count; ++e) to[r * experts + e] *= inverse_lengths[first + e];
      }
    }
    if constexpr (Layer::router_traits.bias) {
      for (int r = 0; r < rows; ++r) {
        for (int e = 0; e < count; ++e) to[r * experts + e] += router.bias[first + e];
      }
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

/// Asks the router about every active token. Throws when a logit or a correction bias is not finite, or when a
/// router that is not the library's answers with an expert that does not exist or a weight that is not finite.
template <class Layer>
void select_experts(forward_args<Layer> const& args, router_weights const& router, cpu_context const& where,
                    float const* logits, std::int32_t* experts_out, float* weights, float* priority,
                    names const& called = {}) {
  constexpr int experts = Layer::dims.experts, top_k = Layer::dims.top_k;
  std::int64_t const tokens = args.tokens.rows;
  if constexpr (Layer::router_traits.correction_bias) {
    for (int e = 0; e < experts; ++e) {
      if (!is_finite(router.correction_bias[e])) {
        fail("layer::forward, router correction_bias", "finite numbers",
             std::to_string(router.correction_bias[e]) + " for expert " + called.expert(e));
      }
    }
  }
  constexpr std::int64_t none = std::numeric_limits<std::int64_t>::max();
  std::atomic<std::int64_t> bad{none}, bad_pair{none};
  parallel_for(where, divide_up(tokens, route_tokens), [&](std::int64_t item) {
    std::int64_t const end = std::min(tokens, (item + 1) * route_tokens);
    for (std::int64_t token = item * route_tokens; token < end; ++token) {
      route<top_k> chosen{};
      if (is_active(args.active, token)) {
        per_expert<experts, serial_lanes> mine;
        bool finite = true;
        for (int e = 0; e < experts; ++e) {
          mine.value[e] = logits[token * experts + e];
          if (!is_finite(mine.value[e])) {
            keep_lowest(bad, token * experts + e);
            finite = false;
          }
        }
        if (!finite) continue;
        chosen = Layer::router::template select<top_k>(serial_lanes{}, mine, router);
      } else {
        for (int& e : chosen.expert) e = -1;
      }
      bool const routed = is_active(args.active, token);
      for (int k = 0; k < top_k; ++k) {
        bool const exists = chosen.expert[k] < experts && (chosen.expert[k] >= 0 || !routed);
        if (!exists || !is_finite(chosen.weight[k]) || !is_finite(chosen.priority)) {
          keep_lowest(bad_pair, token * top_k + k);
        }
        experts_out[token * top_k + k] = chosen.expert[k];
        weights[token * top_k + k] = chosen.weight[k];
      }
      priority[token] = chosen.priority;
    }
  });
  if (std::int64_t const at = bad.load(); at != none) {
    fail("layer::forward, router logits", "finite numbers (are tokens and router weights free of NaN and infinity?)",
         std::to_string(logits[at]) + " for token " + called.token(at / experts) + ", expert " +
             called.expert(at % experts));
  }
  if (std::int64_t const at = bad_pair.load(); at != none) {
    fail("layer::forward, answer of router " + std::string(Layer::router::name),
         "ids from 0 to " + std::to_string(experts - 1) + ", finite weights and priority",
         "id " + std::to_string(experts_out[at]) + ", weight " + std::to_string(weights[at]) + ", priority " +
             std::to_string(priority[at / top_k]) + " for token " + called.token(at / top_k) + ", choice " +
             std::to_string(at % top_k));
  }
}

/// Takes over the caller's routes. Throws when an id is out of range or a weight is not finite.
template <class Layer>
void copy_routes(forward_args<Layer> const& args, std::int32_t* experts_out, float* weights, float* priority) {
  constexpr int experts = Layer::dims.experts, top_k = Layer::dims.top_k;
  for (std::int64_t token = 0; token < args.tokens.rows; ++token) {
    bool const active = is_active(args.active, token);
    for (std::int64_t pair = token * top_k; pair < (token + 1) * top_k; ++pair) {
      std::int32_t const expert = args.routes.experts[pair];
      float const weight = args.routes.weights[pair];
      auto const place = [&] {
        return " for token " + std::to_string(token) + ", choice " + std::to_string(pair - token * top_k);
      };
      if (active && (expert < 0 || expert >= experts)) {
        fail("layer::forward, routes.experts", "ids from 0 to " + std::to_string(experts - 1),
             std::to_string(expert) + place());
      }
      if (active && !is_finite(weight)) {
        fail("layer::forward, routes.weights", "finite numbers", std::to_string(weight) + place());
      }
      experts_out[pair] = active ? expert : -1;
      weights[pair] = active ? weight : 0.0f;
    }
    priority[token] = weights[token * top_k];
  }
}

}  // namespace switchyard::backend::detail
