#pragma once

#include <switchyard/expert/feed_forward.hpp>

namespace switchyard::expert {

/// down(activation(up(x))): the feed-forward block of the first Transformers (Switch, NLLB).
template <class Activation>
struct mlp : feed_forward {
  static_assert(switchyard::activation<Activation>,
                "switchyard: expert::mlp needs an activation of one value: a struct with a name and "
                "static float apply(float x). clamped_swiglu takes two; use it with expert::gated_mlp.");
  using activation = Activation;
  static constexpr auto label = "mlp<" + name_of<Activation>() + ">";
  static constexpr std::string_view name = label;
};

static_assert(expert_policy<mlp<relu>>);

}  // namespace switchyard::expert
