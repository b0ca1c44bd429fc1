#pragma once

#include <switchyard/core/text.hpp>
#include <switchyard/core/with.hpp>
#include <switchyard/router/router_policy.hpp>

namespace switchyard::router {

/// One router weight for all layers of a model: the model owns it and hands it to every `forward` as
/// `shared_router`. Logits are computed anew in each layer from that layer's tokens.
/// Source: Gu et al. 2025, Omni-Router: Sharing Routing Decisions in Sparse Mixture-of-Experts for Speech
/// Recognition, section 3.
template <class Base>
struct shared : Base {
  static_assert(
      makes_logits<Base>,
      "switchyard: a router without logits, such as router::precomputed, has no router weight that router::shared "
      "could share. Give the same .inputs to every layer instead.");
  static constexpr auto label = "shared<" + name_of<Base>() + ">";
  static constexpr std::string_view name = label;
  static constexpr router_traits traits = with(Base::traits, &router_traits::owner, router_owner::model);
};

}  // namespace switchyard::router
