#pragma once

#include <switchyard/core/text.hpp>
#include <switchyard/core/with.hpp>
#include <switchyard/expert/expert_policy.hpp>

/// Experts that change one thing about another. They nest: `with_shared<with_bias<gated_mlp<silu>>, 5632>`.
namespace switchyard::expert {

namespace detail {

template <shared_gate Gate>
constexpr auto shared_gate_ending() {
  if constexpr (Gate == shared_gate::sigmoid) {
    return text(",sigmoid>");
  } else {
    return text(">");
  }
}

}  // namespace detail

/// Every projection of the routed experts has a bias, each expert its own unless the base shares them (`low_rank`). The down bias is
/// multiplied by the combine weight.
template <class Base>
struct with_bias : Base {
  static constexpr auto label = "with_bias<" + name_of<Base>() + ">";
  static constexpr std::string_view name = label;
  static constexpr expert_traits traits = with(Base::traits, &expert_traits::bias, true);
};

/// A bias is added once per token to the sum over its experts, whatever their combine weights are (sigma-MoE). A token whose pairs were
/// all dropped gets it, too, also beside an input that is handed through.
/// Source: Csordas et al. 2023, Approximating Two-Layer Feedforward Networks for Efficient Transformers, with its published layer.
template <class Base>
struct with_output_bias : Base {
  static constexpr auto label = "with_output_bias<" + name_of<Base>() + ">";
  static constexpr std::string_view name = label;
  static constexpr expert_traits traits = with(Base::traits, &expert_traits::output_bias, true);
};

/// Results of the routed experts are multiplied by a constant fraction, as by NLLB's expert output masking in
/// evaluation (1 minus the masking probability).
template <class Base, int Numerator, int Denominator = 1>
struct scaled : Base {
  static_assert(Denominator > 0, "switchyard: expert::scaled takes a fraction. Give a denominator of at least 1.");
  static constexpr auto label = "scaled<" + name_of<Base>() + "," + ratio_text<Numerator, Denominator>() + ">";
  static constexpr std::string_view name = label;
  static constexpr expert_traits traits =
      with(with(Base::traits, &expert_traits::scale_numerator, Base::traits.scale_numerator* Numerator),
           &expert_traits::scale_denominator, Base::traits.scale_denominator* Denominator);
};

/// A shared expert beside the routed ones: every token visits it with weight 1 (or its sigmoid gate). It has the
/// structure and activation of the routed experts, an inner width of its own, and no biases.
/// Source: Dai et al. 2024, DeepSeekMoE, section 3.2; the gated form is Qwen2-MoE's.
template <class Base, int Intermediate, shared_gate Gate = shared_gate::none>
struct with_shared : Base {
  static_assert(Intermediate >= 1,
                "switchyard: expert::with_shared needs the inner width of the shared expert, at least 1. For several "
                "shared experts give the sum of their widths.");
  static_assert(Base::traits.shared_intermediate == 0,
                "switchyard: expert::with_shared stands twice. For several shared experts give the sum of their "
                "widths once.");
  static_assert(
      Base::traits.kept_units == 0,
      "switchyard: expert::top_k_units goes with no shared expert, for no publication says whether that keeps "
      "all of its units. Take one of the two.");
  static constexpr auto label =
      "with_shared<" + name_of<Base>() + "," + decimal<Intermediate>() + detail::shared_gate_ending<Gate>();
  static constexpr std::string_view name = label;
  static constexpr expert_traits traits =
      with(with(Base::traits, &expert_traits::shared_intermediate, Intermediate), &expert_traits::gate, Gate);
};

}  // namespace switchyard::expert
