#pragma once

#include <switchyard/core/text.hpp>
#include <switchyard/router/by_logits.hpp>
#include <switchyard/router/scores.hpp>
#include <switchyard/router/selection.hpp>
#include <switchyard/router/top_k.hpp>
#include <switchyard/router/weighting.hpp>

#include <string_view>

namespace switchyard {

/// How `router::s_base` balances the experts of a batch.
struct sinkhorn_traits {
  int iterations = 3;
  bool subtracts =
      false;  ///< an iteration subtracts the other iteration's logarithms in its sums instead of adding them
};

namespace router {

/// Logits of all tokens of a call, of which the choice sees a bias for each expert that is made of all of them.
template <sinkhorn_traits Form>
struct from_balanced_logits : from_logits {
  static constexpr sinkhorn_traits form = Form;
};

/// The exact numbers of sigma-MoE's published code. Its sums take the logarithms with the wrong sign, so that neither those of tokens nor
/// those of experts become what they should.
inline constexpr sinkhorn_traits as_published{.subtracts = true};

namespace detail {

template <sinkhorn_traits Form>
constexpr auto sinkhorn_label() {
  if constexpr (Form.subtracts) {
    return text(",as_published");
  } else {
    return text<0>{};
  }
}

}  // namespace detail

/// The gate of S-BASE, for training: experts are chosen by logits that Sinkhorn's iterations balance over the tokens of the call, and
/// weighted by the sigmoid of the logit as it is. In evaluation nothing is balanced: take `sigma_moe` there, with the same weights.
///
/// For n tokens and E experts, from u[t] = v[e] = 0, `iterations` times: u[t] = -log(sum over e of exp(logit[t][e] + v[e])), so that every
/// token has a mass of 1, then v[e] = log(n / E) - log(sum over t of exp(logit[t][e] + u[t])), so that every expert has n / E. The `top_k`
/// largest logit + v are chosen; u is the same for all experts of a token. Sums are in the domain of logarithms, so that large logits do
/// no harm. Only active tokens that can be routed count, whatever `tokens_per_group` says. One token alone has nothing to be balanced
/// with: it gets the experts of its largest logits. Where all tokens have the same logits, every expert is as good as any other, and
/// rounding decides. An expert that a bias closes stays closed.
/// Source: Clark et al. 2022, Unified Scaling Laws for Routed Language Models; Csordás et al. 2023, Approximating Two-Layer
/// Feedforward Networks for Efficient Transformers, section 5 (sigmoids, several experts, 3 iterations), see `as_published`.
template <sinkhorn_traits Form = sinkhorn_traits{}>
struct s_base : top_k<scores::logits, selection::corrected, weighting::sigmoid> {
  static_assert(Form.iterations >= 1,
                "switchyard: router::s_base balances by Sinkhorn's iterations, of which it needs at least 1. Where "
                "nothing is to be balanced, as in evaluation, take router::sigma_moe.");
  static constexpr auto label = "s_base<" + decimal<Form.iterations>() + detail::sinkhorn_label<Form>() + ">";
  static constexpr std::string_view name = label;
  static constexpr router_traits traits{};  // the correction bias is no weight of the router, but made of the tokens
  using source = from_balanced_logits<Form>;
};

static_assert(router_policy<s_base<>>);

}  // namespace router
}  // namespace switchyard
