#pragma once

#include <switchyard/core/finite.hpp>
#include <switchyard/core/lanes.hpp>

#include <concepts>
#include <cstdint>
#include <string_view>
#include <type_traits>

namespace switchyard {

/// Who stores the router weight.
enum class router_owner {
  layer,  ///< every layer has its own, in `layer::weights`
  model   ///< one for all layers, handed to each `forward` (Omni-router)
};

/// What a router needs from the layer and the backend. Every flag is off unless the router says otherwise.
struct router_traits {
  router_owner owner = router_owner::layer;
  bool bias = false;             ///< adds a bias per expert to the logits
  bool correction_bias = false;  ///< selection sees a bias per expert that the weights do not
  bool weighs_input = false;     ///< the combine weight multiplies the token, not the expert's output
  bool takes_inputs = false;     ///< decides by `.inputs`, too, which no other wrapper may claim
  bool replaces_zeros = false;   ///< zeros in the sum over a token's experts become elements of the token
};

/// A router's matrix and vectors, float. A bias is an error where the router's traits do not ask for it; minus infinity in one
/// closes its expert.
struct router_weights {
  float const* weight = nullptr;           ///< [experts, hidden], row-major
  float const* bias = nullptr;             ///< [experts]
  float const* correction_bias = nullptr;  ///< [experts]
};

/// `router_weights` whose matrix is stored as other elements: see `router::with_weight_element`.
template <class Element>
struct stored_router_weights {
  Element const* weight = nullptr;         ///< [experts, hidden], row-major
  float const* bias = nullptr;             ///< [experts]
  float const* correction_bias = nullptr;  ///< [experts]

  /// What a decision sees: the biases.
  constexpr operator router_weights() const { return {.bias = bias, .correction_bias = correction_bias}; }
};

/// What a router decides for one token.
template <int TopK>
struct route {
  int expert[TopK];    ///< in the order of choice; -1 where no expert is open any more
  float weight[TopK];  ///< combine weights, before any expert drops the token
  float priority;      ///< place in a queue that is served by priority: the first choice's score
};

/// A pair of a token and an expert, from a router that knows its experts without logits.
struct routed_pair {
  int expert;    ///< -1 for none of this layer
  float weight;  ///< combine weight
};

namespace router {

/// How routes come about, named by a router as `source`. A backend has a step for each.
struct from_logits {};  ///< tokens times a router weight, then `select`; a source that inherits this makes logits, too
struct from_inputs {};  ///< `pair`, from what the call hands in

/// What happens to the features of tokens before the router product, named as `features`. A backend has a step for each.
struct features_as_they_are {};

/// How often a layer runs over its tokens, named as `schedule`. A backend has a step for each.
struct one_pass {
  static constexpr int passes = 1;  ///< at most, of one token
};

}  // namespace router

/// A router says where its routes come from, and what else it is: see router/by_logits.hpp and router/by_inputs.hpp, which it
/// inherits.
///
/// One that chooses by logits sees one token's logits spread over a lane group and returns the same route on every lane: ids from 0
/// to experts - 1, finite weights and priority. Logits are numbers, or minus infinity for experts that are closed to the token.
/// `select` does not throw.
template <class Router>
concept router_policy = requires {
  { Router::name } -> std::convertible_to<std::string_view>;
  { Router::traits } -> std::convertible_to<router_traits>;
  typename Router::source;
  typename Router::features;
  typename Router::schedule;
};

/// Whether a router makes logits of tokens, as most do.
template <class Router>
inline constexpr bool makes_logits = std::is_base_of_v<router::from_logits, typename Router::source>;

/// Whether a router that makes logits takes a token's experts from what the call hands in, and the logits for their weights alone. Its
/// `chosen_expert(inputs, token, top_k, choice)` says which, its `weigh` what they weigh.
template <class Router>
inline constexpr bool is_given_experts = requires {
  &Router::chosen_expert;
};

/// Whether a router that makes logits hides some experts from a token's choice by what the call hands in. Its `mask_of(inputs, token,
/// experts)` says which, as `hides(expert)`, and its `select_masked` takes that.
template <class Router>
inline constexpr bool masks_experts = requires {
  &Router::mask_of;
};

/// Whether the decision about a token sees what the call hands in.
template <class Router>
inline constexpr bool decides_by_inputs = is_given_experts<Router> || masks_experts<Router>;

/// What the routers that choose for themselves are handed.
struct no_choices {};

/// A router's answer for one token, or none: all experts are -1 then, all weights NaN, and the priority is 0.
///
/// There is none where a logit or a correction bias is NaN or infinite, where fewer than `TopK` experts are open, and where a chosen
/// expert that is handed in does not exist. A bias of minus infinity, of either kind, is allowed, and closes its expert. Every backend goes by this one rule. Such a token takes
/// no slot and counts in no load and no auxiliary value, its output is NaN, and `decisions` have what is returned here; but
/// for that, and for capacities, which count it, results are as if it were not active. The CPU throws before that, unless `cpu_context::unroutable` says otherwise.
template <class Router, int TopK, int Experts, class Lanes, class Inputs = no_choices>
SWITCHYARD_HD route<TopK> decide(Lanes lanes, per_expert<Experts, Lanes> const& logits, router_weights const& weights,
                                 Inputs const& inputs = {}, std::int64_t token = 0) {
  using share = per_expert<Experts, Lanes>;
  float worst = 0.0f;  // 1: something is no number
  for (int i = 0; i < share::size; ++i) {
    int const e = share::expert(lanes, i);
    if (e >= Experts) continue;
    bool is_closed = false;
    if constexpr (Router::traits.bias) is_closed = weights.bias[e] == -infinity && logits.value[i] == -infinity;
    if (!is_finite(logits.value[i]) && !is_closed) worst = 1.0f;
    if constexpr (Router::traits.correction_bias) {
      float const bias = weights.correction_bias[e];
      if (!is_finite(bias) && bias != -infinity) worst = 1.0f;
    }
  }
  bool none = lanes.max(worst) > 0.0f;
  route<TopK> answer{};
  if constexpr (is_given_experts<Router>) {
    int experts[TopK];
    for (int k = 0; k < TopK; ++k) {
      experts[k] = Router::chosen_expert(inputs, token, TopK, k);
      none = none || experts[k] < 0 || experts[k] >= Experts;
    }
    if (!none) answer = Router::template weigh<TopK>(lanes, logits, experts);
  } else if constexpr (masks_experts<Router>) {
    if (!none) {
      answer = Router::template select_masked<TopK>(lanes, logits, weights, Router::mask_of(inputs, token, Experts));
    }
  } else {
    if (!none) answer = Router::template select<TopK>(lanes, logits, weights);
  }
  for (int e : answer.expert) none = none || e < 0;
  if (none) {
    for (int& e : answer.expert) e = -1;
    for (float& w : answer.weight) w = not_a_number;
    answer.priority = 0.0f;
  }
  return answer;
}

}  // namespace switchyard
