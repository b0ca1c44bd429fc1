#pragma once

#include <switchyard/core/text.hpp>
#include <switchyard/core/with.hpp>
#include <switchyard/router/router_policy.hpp>

/// Routers that change one thing about another. They nest: `scaled<with_bias<softmax_top_k>, 5, 2>`.
namespace switchyard::router {

/// Adds a bias per expert to the logits before anything else (gpt-oss).
template <class Base>
struct with_bias : Base {
  static_assert(
      makes_logits<Base>,
      "switchyard: a router without logits, such as router::precomputed, has nothing that router::with_bias could add "
      "to. Change the weights in .inputs, or wrap a router that makes logits.");
  static constexpr auto label = "with_bias<" + name_of<Base>() + ">";
  static constexpr std::string_view name = label;
  static constexpr router_traits traits = with(Base::traits, &router_traits::bias, true);
};

/// The combine weight multiplies the token before the expert instead of the expert's output.
/// Source: Meta 2025, Llama 4 reference code. The activation makes the two differ.
template <class Base>
struct on_input : Base {
  static constexpr auto label = "on_input<" + name_of<Base>() + ">";
  static constexpr std::string_view name = label;
  static constexpr router_traits traits = with(Base::traits, &router_traits::weighs_input, true);
};

/// Multiplies the combine weights by a constant fraction (the routed scaling factor of DeepSeek).
template <class Base, int Numerator, int Denominator = 1>
struct scaled : Base {
  static_assert(
      makes_logits<Base>,
      "switchyard: a router without logits, such as router::precomputed, takes its weights from .inputs, so that "
      "router::scaled cannot change them. Scale them there, or use expert::scaled.");
  static_assert(Denominator > 0, "switchyard: router::scaled takes a fraction. Give a denominator of at least 1.");
  static constexpr auto label = "scaled<" + name_of<Base>() + "," + ratio_text<Numerator, Denominator>() + ">";
  static constexpr std::string_view name = label;

  template <int TopK, int Experts, class Lanes>
  SWITCHYARD_HD static route<TopK> select(Lanes lanes, per_expert<Experts, Lanes> const& logits,
                                          router_weights const& weights) {
    return times_factor(Base::template select<TopK>(lanes, logits, weights));
  }
  template <int TopK, int Experts, class Lanes>
  requires is_given_experts<Base> SWITCHYARD_HD static route<TopK> weigh(Lanes lanes,
                                                                         per_expert<Experts, Lanes> const& logits,
                                                                         int const (&experts)[TopK]) {
    return times_factor(Base::template weigh<TopK>(lanes, logits, experts));
  }

  template <int TopK, int Experts, class Lanes, class Mask>
  requires masks_experts<Base> SWITCHYARD_HD static route<TopK> select_masked(Lanes lanes,
                                                                              per_expert<Experts, Lanes> const& logits,
                                                                              router_weights const& weights,
                                                                              Mask mask) {
    return times_factor(Base::template select_masked<TopK>(lanes, logits, weights, mask));
  }

 private:
  template <int TopK>
  SWITCHYARD_HD static route<TopK> times_factor(route<TopK> result) {
    constexpr float factor = static_cast<float>(Numerator) / static_cast<float>(Denominator);
    for (float& w : result.weight) w *= factor;
    return result;
  }
};

}  // namespace switchyard::router
