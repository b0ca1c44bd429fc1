#pragma once

#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/product.hpp>
#include <switchyard/backend/cpu/steps.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/finite.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/layer.hpp>
#include <switchyard/router/by_logits.hpp>
#include <switchyard/router/with_router_input.hpp>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>

/// Step 1 of `backend::cpu`: tokens to logits to expert ids and combine weights.
namespace switchyard::cpu {

inline constexpr int route_tokens = block_rows, route_experts = block_features;  // of an item of the router product

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

/// What the product of tokens and a router weight, stored as `Weight`, reads.
template <class Element, class Weight = float>
struct router_product {
  using element = Element;
  view<Element const> tokens;
  int hidden, experts;
  Weight const* weight;                    ///< [experts, hidden]
  float const* bias = nullptr;             ///< [experts], null: none
  feature_weights features = {};           ///< factors of the tokens' features
  float const* inverse_lengths = nullptr;  ///< [experts], factors of the logits; null: none
};

/// logits[t][e] = token t . router weight e (+ bias): float products whatever the tokens are stored as.
template <class Element, class Weight>
void make_logits(router_product<Element, Weight> const& of, cpu_context const& context, float* logits) {
  using stored = std::conditional_t<std::is_same_v<Weight, float>, float, summed_as_float<Weight>>;
  int const hidden = of.hidden, experts = of.experts;
  int const expert_blocks = static_cast<int>(divide_up(experts, route_experts));
  std::int64_t const tokens = of.tokens.rows;
  std::int64_t const token_blocks = divide_up(tokens, route_tokens);
  row_kernels<weight_view<stored>> const kernels = row_kernels_of<weight_view<stored>>(context.instructions);
  kernels_of_floats<stored> const of_floats(context.instructions);
  parallel_for(context, token_blocks * expert_blocks, [&](std::int64_t item) {
    std::int64_t const first_token = item / expert_blocks * route_tokens;
    int const rows = static_cast<int>(std::min<std::int64_t>(route_tokens, tokens - first_token));
    int const first = static_cast<int>(item % expert_blocks) * route_experts;
    int const count = std::min(route_experts, experts - first);
    float* const to = logits + first_token * experts + first;
    auto const load = [&](int r, int k, int length, float* loaded) -> float const* {
      Element const* const token = of.tokens.row(first_token + r) + k;
      float const* const scale = of.features.of(first_token + r, hidden);
      if constexpr (std::is_same_v<Element, float>) {
        if (scale == nullptr) return token;
      }
      for (int i = 0; i < length; ++i) {
        float const x = static_cast<float>(token[i]);
        loaded[i] = scale == nullptr ? x : x * scale[k + i];
      }
      return loaded;
    };
    auto const* const weight = reinterpret_cast<stored const*>(of.weight + first * std::int64_t{hidden});
    multiply_block<stored>(kernels, rows, hidden, {weight, hidden, 1, count}, load, to, experts, of_floats);
    for (int r = 0; r < rows; ++r) {
      float* const row = to + std::int64_t{r} * experts;
      for (int e = 0; of.inverse_lengths != nullptr && e < count; ++e) row[e] *= of.inverse_lengths[first + e];
      for (int e = 0; of.bias != nullptr && e < count; ++e) row[e] += of.bias[first + e];
      if (of.features.lacks_cluster(first_token + r)) std::fill(row, row + count, not_a_number);
    }
  });
}

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
template <class Router, int Experts, int TopK, class Inputs = no_choices>
void select_experts(std::int64_t tokens, std::uint8_t const* active, router_weights const& router,
                    cpu_context const& context, float const* logits, std::int32_t* experts_out, float* weights,
                    float* priority, names const& called = {}, Inputs const& inputs = {}) {
  constexpr std::int64_t none = std::numeric_limits<std::int64_t>::max();
  std::atomic<std::int64_t> unroutable{none}, bad_pair{none};
  parallel_for(context, divide_up(tokens, route_tokens), [&](std::int64_t item) {
    std::int64_t const end = std::min(tokens, (item + 1) * route_tokens);
    for (std::int64_t token = item * route_tokens; token < end; ++token) {
      route<TopK> chosen{};
      if (is_active(active, token)) {
        per_expert<Experts, serial_lanes> mine;
        for (int e = 0; e < Experts; ++e) mine.value[e] = logits[token * Experts + e];
        chosen = decide<Router, TopK>(serial_lanes{}, mine, router, inputs, token);
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
  if (std::int64_t const at = unroutable.load(); at != none && context.unroutable == unroutable_tokens::throw_error) {
    router_weights read = router;
    if constexpr (!Router::traits.bias) read.bias = nullptr;
    if constexpr (!Router::traits.correction_bias) read.correction_bias = nullptr;
    fail_unroutable(logits + at * Experts, read, Experts, TopK, called.token(at), called);
    if constexpr (is_given_experts<Router>) {
      for (int k = 0; k < TopK; ++k) {
        int const id = Router::chosen_expert(inputs, at, TopK, k);
        if (id >= 0 && id < Experts) continue;
        fail(std::string("layer::forward, ") + Router::experts_name, "ids from 0 to " + std::to_string(Experts - 1),
             std::to_string(id) + " for token " + called.token(at) + ", choice " + std::to_string(k));
      }
    }
    fail_answer(Router::name, Experts, -1, weights[at * TopK], priority[at], called.token(at), 0);
  }
  if (std::int64_t const at = bad_pair.load(); at != none) {
    fail_answer(Router::name, Experts, experts_out[at], weights[at], priority[at / TopK], called.token(at / TopK),
                at % TopK);
  }
}

/// Asks a router by inputs about every pair. Unless the context says otherwise, throws when an id is out of range or a weight is not
/// finite.
template <class Router, class Inputs>
void take_pairs(Inputs const& inputs, std::int64_t tokens, int top_k, int experts, std::uint8_t const* active,
                cpu_context const& context, routes const& to) {
  bool const throws = context.unroutable == unroutable_tokens::throw_error;
  for (std::int64_t token = 0; token < tokens; ++token) {
    bool const routed = is_active(active, token);
    to.priority[token] = 0.0f;
    for (int k = 0; k < top_k; ++k) {
      routed_pair const asked = routed ? Router::pair(inputs, token, top_k, k) : routed_pair{-1, 0.0f};
      auto const pair_text = [&] { return " for token " + std::to_string(token) + ", choice " + std::to_string(k); };
      bool const elsewhere = asked.expert == -1, exists = asked.expert >= 0 && asked.expert < experts;
      if (throws && !elsewhere && !exists) {
        fail(std::string("layer::forward, ") + Router::experts_name,
             "ids from 0 to " + std::to_string(experts - 1) + ", or -1 for none",
             std::to_string(asked.expert) + pair_text());
      }
      if (throws && !elsewhere && !is_finite(asked.weight)) {
        fail(std::string("layer::forward, ") + Router::weights_name, "finite numbers",
             std::to_string(asked.weight) + pair_text());
      }
      if (k == 0 && is_finite(asked.weight)) to.priority[token] = asked.weight;
      std::int64_t const pair = token * top_k + k;
      to.experts[pair] = exists ? asked.expert : -1;
      to.weights[pair] = elsewhere ? 0.0f : exists ? asked.weight : not_a_number;
    }
  }
}

template <>
struct feature_step<router::features_as_they_are> {
  template <class Layer>
  struct memory {
    constexpr memory(carver&, std::int64_t) {}
  };
  template <class Layer, class Product>
  static void prepare(forward_args<Layer> const&, cpu_context const&, memory<Layer> const&, Product&) {}
  template <class Layer>
  static void report(forward_args<Layer> const&, memory<Layer> const&) {}
  template <class Layer>
  static view<typename Layer::element const> tokens_of_experts(forward_args<Layer> const& args, memory<Layer> const&) {
    return args.tokens;
  }
};

template <int Width>
struct feature_step<router::features_of_the_caller<Width>> : feature_step<router::features_as_they_are> {
  template <class Layer, class Product>
  static void prepare(forward_args<Layer> const& args, cpu_context const&, memory<Layer> const&, Product& product) {
    product.tokens = args.inputs.tokens;
    product.hidden = Width;
  }
};

/// Tokens times the router weight, and what the router makes of the logits.
template <>
struct route_step<router::from_logits> {
  template <class Layer>
  using features = feature_step<typename Layer::router::features>;

  template <class Layer>
  struct memory {
    float* logits;  // [tokens, experts]
    double* sums;   // of auxiliary values
    typename features<Layer>::template memory<Layer> of_features;

    constexpr memory(carver& from, std::int64_t tokens)
        : logits(from.take<float>(tokens * Layer::all_experts)),
          sums(from.take<double>(switchyard::detail::auxiliary_doubles * Layer::all_experts)),
          of_features(from, tokens) {}
  };

  template <class Layer>
  static void run(forward_args<Layer> const& args, cpu_context const& context, memory<Layer> const& m, routes const& to,
                  names const& called) {
    logits_of(args, context, m);
    choose(args, context, m, router::weights_of(args), to, called);
  }

  /// The first half of `run`: the logits of all tokens.
  template <class Layer>
  static void logits_of(forward_args<Layer> const& args, cpu_context const& context, memory<Layer> const& m) {
    constexpr shape dims = Layer::dims;
    router_weights const router = router::weights_of(args);
    router_product<typename Layer::element, typename Layer::router::weight_element> product{
        args.tokens, dims.hidden, Layer::all_experts, router::weights_of(args).weight,
        Layer::router_traits.bias ? router.bias : nullptr};
    features<Layer>::template prepare<Layer>(args, context, m.of_features, product);
    make_logits(product, context, m.logits);
  }

  /// The second half: what the router makes of them.
  template <class Layer>
  static void choose(forward_args<Layer> const& args, cpu_context const& context, memory<Layer> const& m,
                     router_weights const& router, routes const& to, names const& called) {
    constexpr shape dims = Layer::dims;
    select_experts<typename Layer::router, Layer::all_experts, dims.top_k>(args.tokens.rows, args.active, router,
                                                                           context, m.logits, to.experts, to.weights,
                                                                           to.priority, called, args.inputs);
  }

  template <class Layer>
  static void report(forward_args<Layer> const& args, memory<Layer> const& m) {
    if constexpr (requires { *args.report.logits; }) {
      if (args.report.logits != nullptr) {
        std::copy(m.logits, m.logits + args.tokens.rows * Layer::all_experts, args.report.logits);
      }
    }
    features<Layer>::template report<Layer>(args, m.of_features);
  }

  template <class Layer>
  static void auxiliary(forward_args<Layer> const& args, memory<Layer> const& m, routes const& made,
                        std::uint8_t const* dropped) {
    if (args.auxiliary == nullptr) return;
    routing_record const record{.tokens = args.tokens.rows,
                                .tokens_per_group = args.tokens_per_group,
                                .logits = m.logits,
                                .experts = made.experts,
                                .weights = made.weights,
                                .dropped = dropped,
                                .active = args.active};
    *args.auxiliary = switchyard::detail::auxiliary_of(record, Layer::all_experts, Layer::dims.top_k, m.sums);
  }

  template <class Layer>
  static view<typename Layer::element const> tokens_of_experts(forward_args<Layer> const& args,
                                                               memory<Layer> const& m) {
    return features<Layer>::template tokens_of_experts<Layer>(args, m.of_features);
  }
};

/// What a router knows of each pair without logits.
template <>
struct route_step<router::from_inputs> {
  template <class Layer>
  struct memory {
    constexpr memory(carver&, std::int64_t) {}
  };
  template <class Layer>
  static void run(forward_args<Layer> const& args, cpu_context const& context, memory<Layer> const&, routes const& to,
                  names const&) {
    take_pairs<typename Layer::router>(args.inputs, args.tokens.rows, Layer::dims.top_k, Layer::all_experts,
                                       args.active, context, to);
  }
  template <class Layer>
  static void report(forward_args<Layer> const&, memory<Layer> const&) {}
  template <class Layer>
  static void auxiliary(forward_args<Layer> const&, memory<Layer> const&, routes const&, std::uint8_t const*) {}
  template <class Layer>
  static view<typename Layer::element const> tokens_of_experts(forward_args<Layer> const& args, memory<Layer> const&) {
    return args.tokens;
  }
};

}  // namespace switchyard::cpu
