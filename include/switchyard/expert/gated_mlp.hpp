#pragma once

#include <switchyard/expert/feed_forward.hpp>

namespace switchyard::expert {

/// down(activation(gate(x), up(x))): the gated feed-forward block of current models.
template <class Activation>
struct gated_mlp : feed_forward {
  static_assert(gated_activation<Activation>,
                "switchyard: expert::gated_mlp needs a gated activation: a struct with a name and "
                "static float apply(float gate, float up).");
  using activation = Activation;
  static constexpr auto label = "gated_mlp<" + name_of<Activation>() + ">";
  static constexpr std::string_view name = label;
  static constexpr expert_traits traits{.gated = true};
};

static_assert(expert_policy<gated_mlp<silu>>);

}  // namespace switchyard::expert
