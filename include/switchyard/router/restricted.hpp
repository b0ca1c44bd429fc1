#pragma once

#include <switchyard/core/checks.hpp>
#include <switchyard/core/lanes.hpp>
#include <switchyard/core/text.hpp>
#include <switchyard/core/with.hpp>
#include <switchyard/router/by_logits.hpp>

#include <cstdint>
#include <string_view>
#include <type_traits>

namespace switchyard {

/// The experts that `router::restricted` may choose.
struct allowed_experts {
  std::uint8_t const* allowed = nullptr;  ///< [experts], 0 where an expert is not; null, or zeros alone: all are
};

namespace router {

/// The experts that are left out for every token of a call.
struct restriction {
  std::uint8_t const* allowed;
  bool restricts;

  SWITCHYARD_HD constexpr bool hides(int expert) const { return restricts && allowed[expert] == 0; }
};

/// The choice is among some experts alone, such as the functional ones that `modularity.hpp` finds, and the same for all tokens of a call.
///
/// Scores are those of all experts, so that the weight of a chosen one is what it is without the restriction, but for a weighting that
/// divides by the sum over the chosen. Where fewer than `top_k` are allowed, others follow in the order of their scores with a weight of
/// 0, as in `with_expert_dropout`: they take rows and slots. A layer without an allowed expert keeps its own choice. Logits and
/// auxiliary values see no restriction, but for those of the choices.
/// Source: Zhang et al. 2023, Emergent Modularity in Pre-trained Transformers, with its code (there with `switch_top1`).
template <class Base>
struct restricted : Base {
  static_assert(
      requires(serial_lanes lanes, per_expert<1, serial_lanes> const& logits, router_weights const& weights,
               restriction mask) { Base::template select_masked<1>(lanes, logits, weights, mask); } &&
          std::is_same_v<typename Base::features, features_as_they_are> &&
          std::is_same_v<typename Base::schedule, one_pass> && !Base::traits.takes_inputs,
      "switchyard: router::restricted leaves experts out of the choice of a router whose scores are those of all "
      "experts, which router::top_k and its named forms are alone. Wrap one of those, before router::scaled and other "
      "wrappers.");
  static constexpr auto label = "restricted<" + name_of<Base>() + ">";
  static constexpr std::string_view name = label;
  static constexpr router_traits traits = with(Base::traits, &router_traits::takes_inputs, true);

  template <class Layer>
  using inputs = allowed_experts;

  SWITCHYARD_HD static constexpr restriction mask_of(allowed_experts const& from, std::int64_t, int) {
    return {from.allowed, from.allowed != nullptr};
  }

  template <int TopK, int Experts, class Lanes>
  SWITCHYARD_HD static route<TopK> select_masked(Lanes lanes, per_expert<Experts, Lanes> const& logits,
                                                 router_weights const& weights, restriction mask) {
    using share = per_expert<Experts, Lanes>;
    float allows = 0.0f;
    for (int i = 0; i < share::size; ++i) {
      int const id = share::expert(lanes, i);
      if (id < Experts && !mask.hides(id)) allows = 1.0f;
    }
    mask.restricts = mask.restricts && lanes.max(allows) > 0.0f;
    return Base::template select_masked<TopK>(lanes, logits, weights, mask);
  }

  template <class Layer>
  static void list_read(forward_args<Layer> const& args, checks::written_memory const& memory) {
    Base::template list_read<Layer>(args, memory);
    memory.read("inputs.allowed", args.inputs.allowed, Layer::all_experts);
  }
};

}  // namespace router
}  // namespace switchyard
