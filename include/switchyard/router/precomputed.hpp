#pragma once

#include <switchyard/router/by_inputs.hpp>

#include <cstdint>
#include <string_view>

namespace switchyard {

/// Routes that the caller made, for `router::precomputed`. An id of -1 is no expert of this layer, such as one that another
/// device has: the pair takes no row and no slot, counts in no load and adds nothing, and its weight is not read (but for a
/// first one, which is the token's priority). An id or a weight that is none of that makes the outputs of its token NaN on a
/// GPU, and on the CPU, which checks it, is an error unless `cpu_context::unroutable` says otherwise.
struct precomputed_routes {
  std::int32_t const* experts = nullptr;  ///< [tokens, top_k], ids from 0 to experts - 1, or -1
  float const* weights = nullptr;         ///< [tokens, top_k], finite
};

namespace router {

/// No router: the caller supplies expert ids and combine weights, [tokens, top_k] each, as `.inputs`.
struct precomputed : by_inputs {
  static constexpr std::string_view name = "precomputed";
  static constexpr char const *experts_name = "inputs.experts", *weights_name = "inputs.weights";

  template <class Layer>
  using inputs = precomputed_routes;

  SWITCHYARD_HD static routed_pair pair(precomputed_routes const& routes, std::int64_t token, int top_k, int choice) {
    std::int64_t const at = token * top_k + choice;
    return {routes.experts[at], routes.weights[at]};
  }

  template <class Layer>
  static void check(forward_args<Layer> const& args) {
    if (args.tokens.rows == 0) return;
    checks::check_pointer(args.inputs.experts, "inputs.experts", "[tokens, top_k] int32");
    checks::check_pointer(args.inputs.weights, "inputs.weights", "[tokens, top_k] float");
  }
  template <class Layer>
  static void list_read(forward_args<Layer> const& args, checks::written_memory const& memory) {
    std::int64_t const pairs = args.tokens.rows * Layer::dims.top_k;
    memory.read("inputs.experts", args.inputs.experts, pairs, "decisions.experts");
    memory.read("inputs.weights", args.inputs.weights, pairs, "decisions.weights");
  }
};

static_assert(router_policy<precomputed>);

}  // namespace router
}  // namespace switchyard
