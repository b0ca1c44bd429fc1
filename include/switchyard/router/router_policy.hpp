#pragma once

#include <switchyard/core/finite.hpp>
#include <switchyard/core/lanes.hpp>

#include <concepts>
#include <string_view>

namespace switchyard {

/// Who stores the router weight.
enum class gate_owner {
  layer,  ///< every layer has its own, in `layer::weights`
  model   ///< one for all layers, handed to each `forward` (Omni-router)
};

/// How the spread of a cluster along a feature is measured.
enum class dispersion {
  mean_absolute,  ///< mean absolute deviation from the cluster's mean
  variance        ///< mean squared deviation
};

/// What the weights of the features are divided by in the end.
enum class feature_scaling {
  per_feature,  ///< each feature by its mean over the clusters
  global,       ///< all by the one mean that they had before they were clipped
  none
};

/// How a router scales the features of a token, before the router product: by how tight the token's cluster is along each
/// of them. Off unless the router says otherwise; see router/adaptive_clustering.hpp.
struct clustering_traits {
  bool scales = false;
  dispersion measure = dispersion::mean_absolute;
  int alpha_numerator = 1, alpha_denominator = 10000;  ///< added to a dispersion before it is inverted
  int clip_numerator = 10, clip_denominator = 1;       ///< most that a weight is, in means of all weights; 0: no limit
  feature_scaling scaling = feature_scaling::per_feature;
  bool unit_rows = true;            ///< rows of the router weight are divided by their length
  bool experts_see_scaled = false;  ///< the experts get the scaled tokens, too
  bool counts_empty = false;        ///< clusters without a token count in every mean, as in the published code
};

/// How a router leads a token through strata of experts, a pass for each that it visits. Off unless the router says
/// otherwise; see router/stratified.hpp.
struct stratification_traits {
  int strata = 0;
  bool norms = true;                ///< a layer norm between passes and after the last
  bool normalised_residual = true;  ///< a pass adds the token after that norm; false: before it
};

/// What a router needs from the layer and the backend. Every flag is off unless the router says otherwise.
struct router_traits {
  gate_owner gate = gate_owner::layer;
  bool bias = false;             ///< adds a bias per expert to the logits
  bool correction_bias = false;  ///< selection sees a bias per expert that the weights do not
  bool weighs_input = false;     ///< the combine weight multiplies the token, not the expert's output
  bool precomputed = false;      ///< the caller supplies ids and weights; there are no logits
  clustering_traits clustering = {};
  stratification_traits stratification = {};
};

/// A router's matrix and vectors, float. A bias is an error where the router's traits do not ask for it; minus infinity in one
/// closes its expert.
struct router_weights {
  float const* weight = nullptr;           ///< [experts, hidden], row-major
  float const* bias = nullptr;             ///< [experts]
  float const* correction_bias = nullptr;  ///< [experts]
};

/// What a router decides for one token.
template <int TopK>
struct route {
  int expert[TopK];    ///< in the order of choice; -1 where no expert is open any more
  float weight[TopK];  ///< combine weights, before any expert drops the token
  float priority;      ///< place in a queue that is served by priority: the first choice's score
};

/// A router sees one token's logits spread over a lane group and returns the same route on every lane: ids from 0 to
/// experts - 1, finite weights and priority. Logits are numbers, or minus infinity for experts that are closed to the token.
/// `select` does not throw.
template <class Router>
concept router_policy = requires(serial_lanes lanes, per_expert<4, serial_lanes> logits, router_weights weights) {
  { Router::name } -> std::convertible_to<std::string_view>;
  { Router::traits } -> std::convertible_to<router_traits>;
  { Router::template select<1>(lanes, logits, weights) } -> std::same_as<route<1>>;
};

/// A router's answer for one token, or none: all experts are -1 then, all weights NaN, and the priority is 0.
///
/// There is none where a logit or a correction bias is NaN or infinite, and where fewer than `TopK` experts are open: a bias of
/// minus infinity, of either kind, is allowed, and closes its expert. Every backend goes by this one rule. Such a token takes
/// no slot and counts in no load and no auxiliary value, its output is NaN, and `decisions` have what is returned here; but
/// for that, and for capacities, which count it, results are as if it were not active. The CPU throws before that, unless `cpu_context::unroutable` says otherwise.
template <class Router, int TopK, int Experts, class Lanes>
SWITCHYARD_HD route<TopK> decide(Lanes lanes, per_expert<Experts, Lanes> const& logits, router_weights const& weights) {
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
  if (!none) answer = Router::template select<TopK>(lanes, logits, weights);
  for (int e : answer.expert) none = none || e < 0;
  if (none) {
    for (int& e : answer.expert) e = -1;
    for (float& w : answer.weight) w = not_a_number;
    answer.priority = 0.0f;
  }
  return answer;
}

}  // namespace switchyard
