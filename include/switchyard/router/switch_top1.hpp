#pragma once

#include <switchyard/router/top_k.hpp>

namespace switchyard::router {

/// One expert per token; its weight is its softmax score.
///
/// Source: Fedus et al. 2021, Switch Transformers, section 2.1. The score is not renormalised: with one expert
/// it would be the constant 1.
struct switch_top1 : softmax_top_k_raw {
  static constexpr std::string_view name = "switch_top1";

  template <int TopK, int Experts, class Lanes>
  SWITCHYARD_HD static route<TopK> select(Lanes lanes, per_expert<Experts, Lanes> const& logits,
                                          router_weights const& weights) {
    static_assert(TopK == 1,
                  "switchyard: router::switch_top1 sends a token to one expert. Set shape.top_k to 1, or use "
                  "router::softmax_top_k.");
    return softmax_top_k_raw::select<TopK>(lanes, logits, weights);
  }
};

static_assert(router_policy<switch_top1>);

}  // namespace switchyard::router
