#pragma once

#include <switchyard/core/host_device.hpp>
#include <switchyard/core/text.hpp>
#include <switchyard/core/with.hpp>
#include <switchyard/router/router_policy.hpp>

#include <string_view>

namespace switchyard::router {

/// The experts of the layer stand in strata, one above the other, and a token climbs through them: a pass in stratum i
/// takes `Base` with a gate of its own over the experts of that stratum and all higher ones, and the token goes on in the
/// stratum above the one that owns its first choice, whether that choice was dropped or not. Above the last it is done.
///
/// A pass makes h = experts(h) + residual for the tokens at hand, then h = layer norm of the stratum just left (h). The
/// first pass has `tokens` (after the block's norm) and `residual` (before it); later ones have h for both. So the layer's
/// output is the block's: nothing is to be added or normalised after it. Capacity is that of each pass, of its experts and
/// the tokens in it; a token that is dropped climbs all the same. `Experts` are the sizes of the strata, lowest first.
/// Source: Xu et al. 2023, Towards Being Parameter-Efficient: A Stratified Sparsely Activated Transformer with Dynamic
/// Capacity, section 3, with what its published code does about residuals and norms.
template <class Base, int... Experts>
struct stratified : Base {
  static_assert(sizeof...(Experts) >= 1 && sizeof...(Experts) <= 255 && ((Experts >= 1) && ...),
                "switchyard: router::stratified takes the sizes of its strata, each of at least 1 expert, for 1 to 255 "
                "strata: stratified<softmax_top_k, 4, 4>.");
  static_assert(!Base::traits.precomputed,
                "switchyard: router::precomputed has the routes of one pass, and router::stratified decides after each "
                "pass which tokens make another. Wrap a router that makes logits.");
  static_assert(
      !Base::traits.clustering.scales,
      "switchyard: router::stratified around router::adaptive_clustering: the clusters of a token are those of "
      "one router, and a stratified layer has several. Take one of the two.");
  static_assert(Base::traits.stratification.strata == 0,
                "switchyard: router::stratified inside another one. Give all sizes to one.");
  static constexpr auto label = "stratified<" + name_of<Base>() + (... + ("," + decimal<Experts>())) + ">";
  static constexpr std::string_view name = label;
  static constexpr router_traits traits =
      with(Base::traits, &router_traits::stratification, stratification_traits{.strata = sizeof...(Experts)});

  /// The lowest expert that the gate of a stratum may choose; of the number of strata: all experts.
  SWITCHYARD_HD static constexpr int first_expert(int stratum) {
    int first = 0, below = 0;
    ((first += below < stratum ? Experts : 0, ++below), ...);
    return first;
  }
  /// The stratum that owns an expert.
  SWITCHYARD_HD static constexpr int stratum_of(int expert) {
    int stratum = 0, end = 0;
    ((end += Experts, stratum += expert >= end ? 1 : 0), ...);
    return stratum;
  }
};

/// A pass of `Base` adds the token before the last pass's norm, as in a block of several layers. The published code
/// normalises in place, so that its residual is the normalised token too.
template <class Base>
struct with_separate_residual : Base {
  static_assert(Base::traits.stratification.strata > 0,
                "switchyard: router::with_separate_residual changes a router::stratified, and this router is none.");
  static constexpr auto label = "with_separate_residual<" + name_of<Base>() + ">";
  static constexpr std::string_view name = label;
  static constexpr router_traits traits =
      with(Base::traits, &router_traits::stratification,
           with(Base::traits.stratification, &stratification_traits::normalised_residual, false));
};

/// Without the layer norms of `Base`'s strata: a pass's result goes to the next one as it is.
template <class Base>
struct without_stratum_norms : Base {
  static_assert(Base::traits.stratification.strata > 0,
                "switchyard: router::without_stratum_norms changes a router::stratified, and this router is none.");
  static constexpr auto label = "without_stratum_norms<" + name_of<Base>() + ">";
  static constexpr std::string_view name = label;
  static constexpr router_traits traits = with(Base::traits, &router_traits::stratification,
                                               with(Base::traits.stratification, &stratification_traits::norms, false));
};

/// A stratified router in one of its passes.
template <class Stratified>
struct pass_of : Stratified {
  static constexpr router_traits traits =
      with(Stratified::traits, &router_traits::stratification, stratification_traits{});
};

}  // namespace switchyard::router
