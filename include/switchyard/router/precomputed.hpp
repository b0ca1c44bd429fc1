#pragma once

#include <switchyard/router/router_policy.hpp>

namespace switchyard::router {

/// No router: the caller supplies expert ids and combine weights, `[tokens, top_k]` each, as
/// `forward`'s `.routes`. The first weight is a token's priority.
struct precomputed {
  static constexpr std::string_view name = "precomputed";
  static constexpr router_traits traits{.precomputed = true};

  /// Never called; it stands here so that the type is a router policy like any other.
  template <int TopK, int Experts, class Lanes>
  SWITCHYARD_HD static route<TopK> select(Lanes, per_expert<Experts, Lanes> const&, router_weights const&) {
    return {};
  }
};

static_assert(router_policy<precomputed>);

}  // namespace switchyard::router
