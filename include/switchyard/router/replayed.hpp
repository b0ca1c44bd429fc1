#pragma once

#include <switchyard/core/text.hpp>
#include <switchyard/core/with.hpp>
#include <switchyard/router/by_logits.hpp>

#include <cstdint>
#include <string_view>
#include <type_traits>

namespace switchyard {

namespace router {

struct the_weights_are_recomputed {
  template <class T>
  static constexpr void refuse() {
    static_assert(sizeof(T) == 0,
                  "switchyard: router::replayed takes the experts from .inputs and makes the weights of this call's "
                  "logits. Leave "
                  ".inputs.weights out, or take router::precomputed for weights of your own.");
  }
};

}  // namespace router

/// Experts that an earlier call chose, for `router::replayed`: its `decisions.experts`.
struct replayed_experts {
  std::int32_t const* experts = nullptr;  ///< [tokens, top_k], ids from 0 to experts - 1
  [[no_unique_address]] absent<router::the_weights_are_recomputed> weights = {};
};

namespace router {

/// The experts of another call, with the weights that `Base` gives them by this call's logits: what reinforcement learning needs so that
/// a policy is trained with the experts that generated its text. The order of a token's experts is that of the ids; its priority is the
/// score of the first. An id out of range leaves its token without a route, as a logit that is no number does; a bias that closes an
/// expert does not close it to ids.
/// Source: Ma et al. 2025, Stabilizing MoE Reinforcement Learning by Aligning Training and Inference Routers.
template <class Base>
struct replayed : Base {
  static_assert(
      requires(serial_lanes lanes, per_expert<1, serial_lanes> const& logits, int const (&experts)[1]) {
        Base::template weigh<1>(lanes, logits, experts);
      } && std::is_same_v<typename Base::features, features_as_they_are> &&
          std::is_same_v<typename Base::schedule, one_pass> && !Base::traits.takes_inputs,
      "switchyard: router::replayed gives chosen experts the weights that a router makes of their scores, which "
      "router::top_k and its named "
      "forms can do alone. Wrap one of those, before router::scaled and other wrappers.");
  static constexpr auto label = "replayed<" + name_of<Base>() + ">";
  static constexpr std::string_view name = label;
  static constexpr router_traits traits =
      with(with(Base::traits, &router_traits::correction_bias, false), &router_traits::takes_inputs, true);
  using source = from_logits;  // whatever Base does to choose
  static constexpr char const* experts_name = "inputs.experts";

  template <class Layer>
  using inputs = replayed_experts;

  SWITCHYARD_HD static int chosen_expert(replayed_experts const& from, std::int64_t token, int top_k, int choice) {
    return from.experts[token * top_k + choice];
  }

  template <class Layer>
  static void check(forward_args<Layer> const& args) {
    Base::template check<Layer>(args);
    if (args.tokens.rows == 0) return;
    checks::check_pointer(args.inputs.experts, "inputs.experts", "[tokens, top_k] int32");
  }
  template <class Layer>
  static void list_read(forward_args<Layer> const& args, checks::written_memory const& memory) {
    Base::template list_read<Layer>(args, memory);
    memory.read("inputs.experts", args.inputs.experts, args.tokens.rows * Layer::dims.top_k);
  }
};

}  // namespace router
}  // namespace switchyard
