#pragma once

#include <switchyard/core/language.hpp>

#include <switchyard/auxiliary.hpp>
#include <switchyard/backend/backend_policy.hpp>
#include <switchyard/capacity/capacity_policy.hpp>
#include <switchyard/core/checks.hpp>
#include <switchyard/core/element.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/shape.hpp>
#include <switchyard/core/text.hpp>
#include <switchyard/core/view.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/expert/expert_policy.hpp>
#include <switchyard/router/router_policy.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>

namespace switchyard {

/// What stands in `.weights.router`: the router's weights where the layer owns them, else what says why not.
template <class Layer>
struct own_router {
  using router = typename Layer::router;
  using type = std::conditional_t<router::traits.owner == router_owner::layer, typename router::template weights<Layer>,
                                  typename router::template no_own_weights<Layer>>;
};
/// The same of `.shared_router`.
template <class Layer>
struct shared_router {
  using router = typename Layer::router;
  using type = std::conditional_t<router::traits.owner == router_owner::model, typename router::template weights<Layer>,
                                  typename router::template no_shared_weights<Layer>>;
};

/// Where `forward` writes what it decided: every value is written anew, none is added to. Pointers may be null. `experts` in a size is
/// `layer::all_experts`: those of the shape, and those after them that compute nothing (expert/null_experts.hpp).
///
/// A pair that goes nowhere has the expert -1. Its weight is 0 where the row is not active or the caller's route says -1, and NaN
/// where the token could not be routed (see `decide`): that is how such a token is told from others.
///
/// Where a token makes several passes, the arrays by token are [passes, tokens, top_k]; the expert is -1 where a token makes no such
/// pass, and for choices beyond its experts. Counts are sums of the passes.
struct decisions {
  std::int32_t* experts = nullptr;  ///< [tokens, top_k] in the order of choice; -1 for pairs that go nowhere
  float* weights = nullptr;         ///< [tokens, top_k] combine weights of the experts' outputs; 0 where dropped
  std::uint8_t* dropped = nullptr;  ///< [tokens, top_k] 1 where the expert had no slot left
  std::int64_t* counts = nullptr;   ///< [experts] rows that each expert computed; 0 for those that compute nothing
  std::int64_t* load = nullptr;     ///< [experts] pairs that chose each expert, dropped ones included
};

/// What one `forward` reads and writes. Initialise by name, in this order.
template <class Layer>
struct forward_args {
  using element = typename Layer::element;
  using router = typename Layer::router;

  view<element const> tokens = {};  ///< [tokens, hidden]
  typename Layer::weights weights = {};
  /// [tokens, hidden]; may be `tokens` itself, or what a router says, must not overlap them otherwise, nor anything else
  view<element> output = {};
  /// At least `workspace_bytes(tokens)`, 16-byte aligned, for this call alone while it runs: two at the same time need two.
  std::span<std::byte> workspace = {};
  /// The model's router weight, for `router::shared`.
  [[no_unique_address]] typename switchyard::shared_router<Layer>::type shared_router = {};
  /// What only some routers take: see the router.
  [[no_unique_address]] typename router::template inputs<Layer> inputs = {};
  /// What only some experts take: see the expert.
  [[no_unique_address]] expert_inputs_of<Layer> expert_inputs = {};
  /// Capacity and queues are per group of so many rows, padding included; 0: one group.
  std::int64_t tokens_per_group = 0;
  std::uint8_t const* active = nullptr;  ///< [tokens]; 0 marks a padding row: not routed, output 0
  switchyard::decisions decisions = {};
  /// What only some routers can tell, such as `.report = {.logits = ...}`; pointers may be null.
  [[no_unique_address]] typename router::template report<Layer> report = {};
  /// The mean over the passes, where there are several.
  [[no_unique_address]] typename router::template auxiliary<Layer> auxiliary = {};
};

namespace detail {

struct no_views {};

constexpr shape with_experts(shape dims, int experts) {
  dims.experts = experts;
  return dims;
}

/// What an expert offers to make views of its weights.
template <shape Dims, class Expert, class Element>
constexpr auto views_of() {
  if constexpr (requires { typename Expert::template views<Dims, Expert, Element>; }) {
    return std::type_identity<typename Expert::template views<Dims, Expert, Element>>{};
  } else {
    return std::type_identity<no_views>{};
  }
}

}  // namespace detail

/// One Mixture-of-Experts layer, everything but the number of tokens known at compile time.
///
/// It has no state: `workspace_bytes` and `forward` are static, and the caller owns all memory. `Router`,
/// `Capacity`, `Expert` and `Backend` model `router_policy`, `capacity_policy`, `expert_policy` and
/// `backend_policy`; `Element` is what tokens and expert weights are stored as. Policies name the types of what only they need:
/// nothing here knows one of them.
template <shape Dims, class Router, class Capacity, class Expert, class Backend = backend::cpu, class Element = float>
struct layer : decltype(detail::views_of<Dims, Expert, Element>())::type {
  static_assert(Dims.hidden >= 1, "switchyard: shape.hidden is the width of a token. Set it to at least 1.");
  static_assert(Dims.intermediate >= 1,
                "switchyard: shape.intermediate is the inner width of an expert. Set it to at least 1.");
  static_assert(Dims.experts >= 1, "switchyard: shape.experts is the number of routed experts. Set it to at least 1.");
  static_assert(Dims.top_k >= 1, "switchyard: shape.top_k is the number of experts per token. Set it to at least 1.");
  static_assert(
      router_policy<Router>,
      "switchyard: the second argument of layer is no router. A router has a name, and inherits router::by_logits and "
      "has select, or inherits router::by_inputs and has pair; see router/by_logits.hpp.");
  static_assert(capacity_policy<Capacity>,
                "switchyard: the third argument of layer is no capacity. A capacity has a name, traits and "
                "static std::int64_t slots_per_expert(shape, std::int64_t tokens); see "
                "capacity/capacity_policy.hpp.");
  static_assert(
      expert_policy<Expert>,
      "switchyard: the fourth argument of layer is no expert. An expert has a name and an activation, and inherits "
      "expert::feed_forward; see expert/feed_forward.hpp.");
  /// What the router chooses from: the experts of the shape, and those after them that compute nothing.
  static constexpr int all_experts = Dims.experts + Expert::traits.nulls.count();
  static_assert(Dims.top_k / Router::choices <= all_experts,
                "switchyard: shape.top_k is larger than shape.experts. Lower top_k or add experts.");
  static_assert(Router::template fits<Router, detail::with_experts(Dims, all_experts), Capacity, Expert>(),
                "switchyard: the router does not go with the shape, the capacity or the expert.");
  static_assert(switchyard::element<Element>,
                "switchyard: tokens and weights are stored as float, switchyard::bfloat16 or switchyard::half. Choose "
                "one of them as the sixth argument of layer.");
  static_assert(
      requires { typename Backend::context; },
      "switchyard: the fifth argument of layer is no backend, or its header is not included. backend::cpu comes "
      "with switchyard/switchyard.hpp, backend::cuda with switchyard/switchyard.cuh, which nvcc compiles.");

  static constexpr shape dims = Dims;
  using router = Router;
  using capacity = Capacity;
  using expert = Expert;
  using backend = Backend;
  using element = Element;
  static constexpr switchyard::router_traits router_traits = Router::traits;
  static constexpr switchyard::capacity_traits capacity_traits = Capacity::traits;
  static constexpr switchyard::expert_traits expert_traits = Expert::traits;

  using weights = typename Expert::template weights<layer>;
  using args = forward_args<layer>;
  using context = typename Backend::context;

  /// So many rows of the layer's width, back to back: tokens or output.
  static constexpr view<element const> rows(element const* first, std::int64_t tokens) {
    return {first, tokens, Dims.hidden};
  }
  static constexpr view<element> rows(element* first, std::int64_t tokens) { return {first, tokens, Dims.hidden}; }

  /// Bytes of scratch memory that `forward` needs for so many tokens: the same for every call, and never less for more tokens,
  /// so that what was allocated for the largest batch serves every smaller one.
  static constexpr std::size_t workspace_bytes(std::int64_t tokens) {
    if (tokens < 0 || tokens > most_tokens) checks::fail_tokens("layer::workspace_bytes", most_tokens, tokens);
    return Backend::template workspace_bytes<layer>(tokens);
  }

  /// Runs the layer. Throws `error` when an argument does not fit; then nothing has been written but workspace.
  ///
  /// On the CPU tokens that cannot be routed are an error too, unless the context says otherwise. Not checked: that pointers
  /// reach as far as sizes and strides say, and that expert weights are finite (a NaN there shows in the output).
  static void forward(args const& a, context const& where = {}) {
    static_assert(backend_policy<Backend, layer>,
                  "switchyard: the fifth argument of layer is no backend. A backend has a name, name_for<Layer>(), "
                  "workspace_bytes<Layer>(tokens) and forward<Layer>(args, context); see backend/backend_policy.hpp.");
    if constexpr (!expert_storage<Backend>::in_parts) check(a);
    Backend::template forward<layer>(a, where);
  }

  /// Throws `error` when an argument does not fit. `forward` calls it; so does a backend that offers single steps.
  static void check(args const& a) {
    using namespace checks;
    std::int64_t const tokens = a.tokens.rows;
    if (tokens < 0 || tokens > most_tokens) fail_tokens("layer::forward", most_tokens, tokens);
    check_matrix(a.tokens, "tokens", tokens, Dims.hidden);
    check_matrix(a.output, "output", tokens, Dims.hidden);
    if constexpr (!expert_storage<Backend>::in_parts) Expert::template check<layer>(a.weights);
    if constexpr (takes_expert_inputs<layer>) Expert::template check_inputs<layer>(a);
    Router::template check<layer>(a);
    if (a.tokens_per_group < 0) {
      fail("layer::forward, tokens_per_group", "0 (one group) or more", std::to_string(a.tokens_per_group));
    }
    if constexpr (expert_storage<Backend>::in_parts) {
      check_overlap(a, a.workspace.size());
    } else {
      std::size_t const needed = workspace_bytes(tokens);
      check_workspace(a.workspace.data(), a.workspace.size(), needed, tokens);
      check_overlap(a, needed);
    }
  }

 private:
  /// Rows and pairs are numbered with 32 bits; offsets in memory are 64 bits wide.
  static constexpr std::int64_t most_tokens = (std::int64_t{1} << 31) / Dims.top_k - 1;

  /// What a call writes must be apart from all that it reads, and from all else that it writes.
  static void check_overlap(args const& a, std::size_t workspace_bytes) {
    std::int64_t const tokens = a.tokens.rows, pairs = Router::schedule::passes * tokens * Dims.top_k;
    checks::written_memory list;
    list.write("workspace", a.workspace.data(), static_cast<std::int64_t>(workspace_bytes));
    list.write("output", a.output);
    list.write("decisions.experts", a.decisions.experts, pairs);
    list.write("decisions.weights", a.decisions.weights, pairs);
    list.write("decisions.dropped", a.decisions.dropped, pairs);
    list.write("decisions.counts", a.decisions.counts, all_experts);
    list.write("decisions.load", a.decisions.load, all_experts);
    Router::template list_written<layer>(a, list);
    list.read("active", a.active, tokens);
    Router::template list_read<layer>(a, list);
    if constexpr (!expert_storage<Backend>::in_parts) Expert::template list_read<layer>(a.weights, list);
    if constexpr (takes_expert_inputs<layer>) Expert::template list_inputs<layer>(a, list);
    if (tokens == 0) return;
    checks::check_output(a.output, a.tokens, "tokens");
    list.read("tokens", a.tokens, "output");
  }
};

}  // namespace switchyard
