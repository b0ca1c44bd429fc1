#pragma once

#include <switchyard/core/exponential.hpp>
#include <switchyard/core/text.hpp>
#include <switchyard/router/by_logits.hpp>
#include <switchyard/router/scores.hpp>
#include <switchyard/router/selection.hpp>
#include <switchyard/router/top_k.hpp>
#include <switchyard/router/weighting.hpp>

#include <cmath>
#include <cstdint>
#include <string_view>
#include <type_traits>

/// Routers that choose which parts of a dense block a token is worth computing (MoEfication): the experts are clusters of the block's
/// hidden units, so each of the chosen ones has the weight 1, and all of them together are the dense block. `moefication/moefy.hpp` makes
/// such a layer of a dense block, and `moefication/training.hpp` trains a selector.
namespace switchyard {

/// The two matrices of `router::mlp_selector`, all float, row-major.
struct selector_weights {
  float const* weight = nullptr;         ///< [experts, hidden], W_a
  float const* output_weight = nullptr;  ///< [experts, experts], W_b: a row has the weights of one expert's logit
  [[no_unique_address]] absent<router::the_router_adds_no_bias> bias = {};
  [[no_unique_address]] absent<router::the_router_adds_no_bias> correction_bias = {};

  constexpr operator router_weights() const { return {.weight = weight}; }
};

namespace router {

/// The best `top_k` logits, each with the weight 1. With the centers of clusters as its weight, scaled to a common norm
/// (`moefication::with_common_norm`), it is the selector of MoEfication's faster code.
struct unweighted_top_k : top_k<scores::logits, selection::best, weighting::one> {
  static constexpr std::string_view name = "unweighted_top_k";
};

/// Logits that are made of the direction of a token, x / |x|, named as `source`; a token of zeros has the direction zero.
struct from_center_distances : from_logits {
};  ///< minus the distance of the direction and each row of the router weight
struct from_selector_network : from_logits {};  ///< W_b tanh(W_a x / |x|)

/// What `nearest_centers` and `mlp_selector` have in common.
template <class Source>
struct by_direction : top_k<scores::logits, selection::best, weighting::one> {
  using source = Source;

  template <class Self, shape Dims, class Capacity, class Expert>
  static constexpr bool fits() {
    static_assert(
        std::is_same_v<typename Self::source, Source> &&
            std::is_same_v<typename Self::features, features_as_they_are> &&
            std::is_same_v<typename Self::schedule, one_pass> && std::is_same_v<typename Self::weight_element, float> &&
            !Self::traits.bias,
        "switchyard: router::nearest_centers and router::mlp_selector make their logits of a token's direction by "
        "themselves. Take router::replayed, router::adaptive_clustering, router::with_router_input, "
        "router::with_weight_element and router::with_bias away, or wrap router::unweighted_top_k, which is linear.");
    return by_logits::template fits<Self, Dims, Capacity, Expert>();
  }
};

/// The experts whose centers are nearest to the direction of the token: logits are -| x / |x| - c_e |, the router weight has the centers
/// c_e, and each chosen expert has the weight 1. A center is the mean of the normalised rows of its cluster, and is not normalised again.
/// Source: Zhang et al. 2022, MoEfication: Transformer Feed-forward Layers are Mixtures of Experts, section 3.3 (parameter center). Where
/// |x| is 0, which is not a number in its code, the direction is 0 here.
struct nearest_centers : by_direction<from_center_distances> {
  static constexpr std::string_view name = "nearest_centers";
};

/// A network of two small matrices without biases that predicts which experts a token activates: logits are W_b tanh(W_a x / |x|), with
/// W_a [experts, hidden] and W_b [experts, experts], and each chosen expert has the weight 1.
/// Source: Zhang et al. 2022, MoEfication, section 3.3 (MLP selection), with its code. Where |x| is 0 the direction is 0.
struct mlp_selector : by_direction<from_selector_network> {
  static constexpr std::string_view name = "mlp_selector";

  template <class Layer>
  using weights = selector_weights;

  template <class Layer>
  static void check(forward_args<Layer> const& args) {
    by_logits::check<Layer>(args);
    constexpr bool of_model = Layer::router::traits.owner == router_owner::model;
    checks::check_pointer(weights_of(args).output_weight, "output_weight", "[experts, experts] float",
                          {of_model ? "shared_router." : "weights.router."});
  }
  template <class Layer>
  static void list_read(forward_args<Layer> const& args, checks::written_memory const& memory) {
    by_logits::list_read<Layer>(args, memory);
    memory.read("the router's output_weight", weights_of(args).output_weight,
                std::int64_t{Layer::all_experts} * Layer::all_experts);
  }
  template <class Layer>
  static constexpr router_costs costs() {
    router_costs result = by_logits::costs<Layer>();
    constexpr std::int64_t square = std::int64_t{Layer::all_experts} * Layer::all_experts;
    result.matrix += square;
    result.all += square;
    return result;
  }
};

static_assert(router_policy<unweighted_top_k>);
static_assert(router_policy<nearest_centers>);
static_assert(router_policy<mlp_selector>);

}  // namespace router

/// The mathematics of one number of a selector, for every backend.
namespace selectors {

/// 1 / |x| of the sum of the squares of x; 0 where |x| is 0, or less than the least normal float. A NaN goes through.
SWITCHYARD_HD inline float inverse_length(double squares) {
  constexpr double least = 0x1p-126 * 0x1p-126;
  return squares < least ? 0.0f : static_cast<float>(1.0 / std::sqrt(squares));
}

/// -| x / |x| - c | from x . c, 1 / |x| and |c|^2.
SWITCHYARD_HD inline float minus_distance(float product, float inverse, float center_square) {
  float const unit = inverse != 0.0f ? 1.0f : 0.0f;
  float const square = unit - 2.0f * (product * inverse) + center_square;
  return square < 0.0f ? 0.0f : -std::sqrt(square);
}

/// tanh(x . w / |x|): 1 - 2 / (1 + exp(2 z)), of which a compiler makes a vector.
SWITCHYARD_HD inline float hidden_value(float product, float inverse) {
  float const z = product * inverse;
  return 1.0f - 2.0f / (1.0f + exponential(2.0f * z));
}

}  // namespace selectors
}  // namespace switchyard
