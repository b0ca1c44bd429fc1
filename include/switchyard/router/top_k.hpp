#pragma once

#include <switchyard/router/by_logits.hpp>
#include <switchyard/router/scores.hpp>
#include <switchyard/router/selection.hpp>
#include <switchyard/router/take_top_k.hpp>
#include <switchyard/router/weighting.hpp>

#include <type_traits>

namespace switchyard::router {

/// The router of nearly every published model, put together from three pieces: logits become scores, a
/// selection turns scores into keys and takes the `top_k` best, a weighting turns the scores of the chosen
/// into combine weights. `shape.top_k` says how many.
template <class Scores, class Selection, class Weighting>
struct top_k : by_logits {
  static_assert(
      !std::is_same_v<Scores, scores::logits> ||
          !(std::is_same_v<Weighting, weighting::sum> || std::is_same_v<Weighting, weighting::l2>),
      "switchyard: router::top_k cannot divide by the sum or norm of scores::logits, which may be negative or "
      "zero. Use weighting::softmax or weighting::sigmoid, or scores::softmax or scores::sigmoid.");
  static constexpr auto label = "top_k(" + Scores::label + "," + Selection::label + "," + Weighting::label + ")";
  static constexpr std::string_view name = label;
  static constexpr router_traits traits{.correction_bias = Selection::correction_bias};

  template <int TopK, int Experts, class Lanes>
  SWITCHYARD_HD static route<TopK> select(Lanes lanes, per_expert<Experts, Lanes> const& logits,
                                          router_weights const& weights) {
    using share = per_expert<Experts, Lanes>;
    share scores = logits;
    Scores::apply(lanes, scores);
    share keys = logits;
    if constexpr (!(Scores::chosen_by_logits && Selection::needs_order_alone)) {
      for (int i = 0; i < share::size; ++i) {
        if (logits.value[i] != share::closed) keys.value[i] = scores.value[i];
      }
    }
    Selection::template apply<TopK>(lanes, keys, weights);
    chosen<TopK> const taken = take_top_k<TopK>(lanes, keys);
    route<TopK> result{};
    for (int k = 0; k < TopK; ++k) result.expert[k] = taken.choice[k].id;
    weigh_by(lanes, scores, result);
    for (int k = 0; k < TopK; ++k) result.expert[k] = open_or_none(taken.choice[k]);
    return result;
  }

  /// The weights of these experts, ids from 0 to experts - 1, whatever the selection would choose.
  template <int TopK, int Experts, class Lanes>
  SWITCHYARD_HD static route<TopK> weigh(Lanes lanes, per_expert<Experts, Lanes> const& logits,
                                         int const (&experts)[TopK]) {
    per_expert<Experts, Lanes> scores = logits;
    Scores::apply(lanes, scores);
    route<TopK> result{};
    for (int k = 0; k < TopK; ++k) result.expert[k] = experts[k];
    weigh_by(lanes, scores, result);
    return result;
  }

 private:
  /// Fills in the weights and the priority of a route's experts.
  template <int TopK, int Experts, class Lanes>
  SWITCHYARD_HD static void weigh_by(Lanes lanes, per_expert<Experts, Lanes> const& scores, route<TopK>& to) {
    for (int k = 0; k < TopK; ++k) to.weight[k] = scores.at(lanes, to.expert[k]);
    to.priority = to.weight[0];
    Weighting::apply(to.weight);
  }
};

/// Softmax over all experts, the best `top_k`, weights divided by their sum.
/// Source: Jiang et al. 2024, Mixtral of Experts, section 2.1 (there as a softmax over the chosen logits, which
/// is the same).
struct softmax_top_k : top_k<scores::softmax, selection::best, weighting::sum> {
  static constexpr std::string_view name = "softmax_top_k";
};

/// Softmax over all experts, the best `top_k`, probabilities used as they are.
/// Source: Muennighoff et al. 2024, OLMoE, section 2.
struct softmax_top_k_raw : top_k<scores::softmax, selection::best, weighting::as_scored> {
  static constexpr std::string_view name = "softmax_top_k_raw";
};

/// The best `top_k` logits, each weighted by its sigmoid.
/// Source: Meta 2025, Llama 4 reference code, there with `on_input`.
struct sigmoid_top_k : top_k<scores::logits, selection::best, weighting::sigmoid> {
  static constexpr std::string_view name = "sigmoid_top_k";
};

/// Independent sigmoids, the best `top_k` of those, used as they are: where sigmoids round to the same number the lower id
/// wins, whatever the logits.
/// Source: Csordás et al. 2023, Approximating Two-Layer Feedforward Networks for Efficient Transformers, section 5.
struct sigma_moe : top_k<scores::sigmoid, selection::best, weighting::as_scored> {
  static constexpr std::string_view name = "sigma_moe";
};

/// The best `top_k` logits, then a softmax over those alone.
/// Source: OpenAI 2025, gpt-oss model card, section 2.2; IBM 2024, Granite 3.0 Language Models.
struct top_k_softmax : top_k<scores::logits, selection::best, weighting::softmax> {
  static constexpr std::string_view name = "top_k_softmax";
};

static_assert(router_policy<softmax_top_k>);
static_assert(router_policy<softmax_top_k_raw>);
static_assert(router_policy<top_k_softmax>);
static_assert(router_policy<sigmoid_top_k>);
static_assert(router_policy<sigma_moe>);

}  // namespace switchyard::router
