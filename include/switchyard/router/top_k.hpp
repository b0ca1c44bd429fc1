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
    per_expert<Experts, Lanes> scores = logits;
    Scores::apply(lanes, scores);
    per_expert<Experts, Lanes> keys = keys_of(logits, scores);
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

  /// The same where a mask hides experts from the choice, by `mask.hides(expert)`; their scores count in those of the others as ever.
  /// Where fewer than `TopK` can be chosen then, masked experts follow in the order of their scores, with a weight of 0, and the weights
  /// of the others are made as if they were the only ones. The priority is 0 where there are no others.
  template <int TopK, int Experts, class Lanes, class Mask>
  SWITCHYARD_HD static route<TopK> select_masked(Lanes lanes, per_expert<Experts, Lanes> const& logits,
                                                 router_weights const& weights, Mask mask) {
    using share = per_expert<Experts, Lanes>;
    share scores = logits;
    Scores::apply(lanes, scores);
    share keys = keys_of(logits, scores);
    share masked = keys;
    for (int i = 0; i < share::size; ++i) {
      int const id = share::expert(lanes, i);
      if (id >= Experts) continue;
      if (mask.hides(id)) {
        keys.value[i] = share::closed;
        if constexpr (Selection::correction_bias) {
          if (weights.correction_bias[id] == -infinity) masked.value[i] = share::closed;
        }
      } else {
        masked.value[i] = share::closed;
      }
    }
    Selection::template apply<TopK>(lanes, keys, weights);
    route<TopK> result{};
    int open = TopK;  // choices that are not masked
    candidate last = before_all;
    for (int k = 0; k < TopK; ++k) {
      candidate next = next_choice(lanes, keys, last);
      if (next.value == -infinity && k < open) {
        open = k;
        keys = masked;
        next = next_choice(lanes, keys, before_all);
      }
      last = next;
      result.expert[k] = open_or_none(next);
      result.weight[k] = k < open ? scores.at(lanes, next.id) : 0.0f;
    }
    result.priority = result.weight[0];
    weigh_first<TopK>(open, result.weight);
    return result;
  }

 private:
  /// What a selection goes by before it changes it: scores, or logits where these have their order.
  template <int Experts, class Lanes>
  SWITCHYARD_HD static per_expert<Experts, Lanes> keys_of(per_expert<Experts, Lanes> const& logits,
                                                          per_expert<Experts, Lanes> const& scores) {
    using share = per_expert<Experts, Lanes>;
    share keys = logits;
    if constexpr (!(Scores::chosen_by_logits && Selection::needs_order_alone)) {
      for (int i = 0; i < share::size; ++i) {
        if (logits.value[i] != share::closed) keys.value[i] = scores.value[i];
      }
    }
    return keys;
  }

  /// The weighting of the first `count` scores, of at most `Most`, as if there were no others.
  template <int Most, int TopK>
  SWITCHYARD_HD static void weigh_first(int count, float (&weight)[TopK]) {
    if (count == Most) {
      float alone[Most];
      for (int k = 0; k < Most; ++k) alone[k] = weight[k];
      Weighting::apply(alone);
      for (int k = 0; k < Most; ++k) weight[k] = alone[k];
    } else if constexpr (Most > 1) {
      weigh_first<Most - 1>(count, weight);
    }
  }

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
