#pragma once

#include <switchyard/core/text.hpp>
#include <switchyard/router/by_logits.hpp>
#include <switchyard/router/scores.hpp>
#include <switchyard/router/take_top_k.hpp>

namespace switchyard::router {

/// Two experts, one after the other, each weighted by a softmax over the experts close to it.
///
/// For the best expert, with logit s: every expert with (s - logit) / max(|logit|, s) > 2 * jitter is masked, and
/// the weight is the softmax of the rest at the best. The same again without the first choice. The weights do
/// not sum to 1. `JitterNumerator / JitterDenominator` is the jitter of training, 0.01 in the published model.
/// Source: Liu et al. 2024, GRIN: GRadient-INformed MoE, section 2.2 (SparseMixer-v2), in inference: PhiMoE.
template <int JitterNumerator = 1, int JitterDenominator = 100>
struct sparsemixer : by_logits {
  static_assert(JitterNumerator >= 0 && JitterDenominator > 0,
                "switchyard: router::sparsemixer takes the jitter as a fraction. Give a numerator of at least 0 and "
                "a denominator of at least 1.");
  static constexpr auto label = "sparsemixer<" + ratio_text<JitterNumerator, JitterDenominator>() + ">";
  static constexpr std::string_view name = label;

  template <int TopK, int Experts, class Lanes>
  SWITCHYARD_HD static route<TopK> select(Lanes lanes, per_expert<Experts, Lanes> const& logits,
                                          router_weights const&) {
    // The concept asks with top_k 1 without a body; a layer has to have 2.
    static_assert(TopK == 2,
                  "switchyard: router::sparsemixer sends a token to two experts. Set shape.top_k to 2, and in "
                  "router::stratified give the last stratum two experts or more.");
    using share = per_expert<Experts, Lanes>;
    chosen<TopK> const taken = take_top_k<TopK>(lanes, logits);
    route<TopK> result{};
    for (int k = 0; k < TopK; ++k) {
      candidate const best = taken.choice[k];
      share close = logits;
      for (int i = 0; i < share::size; ++i) {
        float const logit = logits.value[i];
        float const magnitude = std::fabs(logit);
        float const scale = magnitude > best.value ? magnitude : best.value;
        bool const far = (best.value - logit) * JitterDenominator > 2 * JitterNumerator * scale;
        bool const gone = k > 0 && share::expert(lanes, i) == taken.choice[0].id;
        if (far || gone) close.value[i] = share::closed;
      }
      scores::softmax::apply(lanes, close);
      result.expert[k] = open_or_none(best);
      result.weight[k] = close.at(lanes, best.id);
    }
    result.priority = result.weight[0];
    return result;
  }
};

static_assert(router_policy<sparsemixer<>>);

}  // namespace switchyard::router
