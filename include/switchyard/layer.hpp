#pragma once

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
#include <utility>

namespace switchyard {

// A member that a layer does not have is of one of these types: setting it is a compile error that names why. The
// router's have members to be set, because that is where a compiler prints the whole sentence.
struct the_model_owns_the_router_see_shared_router {
  struct member {
    member() = default;
    template <class T>
    member(T const&) {
      static_assert(sizeof(T) == 0,
                    "switchyard: router::shared keeps one router weight for all layers, and the model owns it. Set "
                    ".shared_router in the arguments of forward instead of .weights.router.");
    }
  };
  member weight = {}, bias = {}, correction_bias = {};
};
struct the_layer_owns_the_router_see_weights {
  struct member {
    member() = default;
    template <class T>
    member(T const&) {
      static_assert(
          sizeof(T) == 0,
          "switchyard: this layer owns its router weight. Set .weights.router instead of .shared_router, or wrap "
          "the router in router::shared.");
    }
  };
  member weight = {}, bias = {}, correction_bias = {};
};
struct routes_are_precomputed_see_routes {
  struct member {
    member() = default;
    template <class T>
    member(T const&) {
      static_assert(
          sizeof(T) == 0,
          "switchyard: router::precomputed has no router weight. Set .routes in the arguments of forward instead.");
    }
  };
  member weight = {}, bias = {}, correction_bias = {};
};
struct each_stratum_has_a_gate_see_gate {
  each_stratum_has_a_gate_see_gate() = default;
  template <class T>
  each_stratum_has_a_gate_see_gate(T const&) {
    static_assert(sizeof(T) == 0,
                  "switchyard: router::stratified has a router weight for each stratum. Set .gate[0], .gate[1], ... "
                  "instead of .weight.");
  }
};
struct the_router_adds_no_bias_see_with_bias {
  the_router_adds_no_bias_see_with_bias() = default;
  template <class T>
  the_router_adds_no_bias_see_with_bias(T const&) {
    static_assert(
        sizeof(T) == 0,
        "switchyard: this router adds no bias to the logits and none to what it chooses by, so that it would ignore "
        "one. Wrap it in router::with_bias, or give router::top_k a selection with selection::corrected.");
  }
};
struct the_router_makes_the_routes {};
struct the_router_has_no_clusters {};
struct the_router_has_no_strata {};
struct the_router_has_no_norms {};
struct the_expert_has_no_gate {};
struct the_expert_has_no_bias {};
struct the_layer_has_no_shared_expert {};
struct auxiliary_values_need_logits {};

/// `router_weights` of a router without biases.
struct plain_router_weights {
  float const* weight = nullptr;  ///< [experts, hidden], row-major
  [[no_unique_address]] the_router_adds_no_bias_see_with_bias bias = {};
  [[no_unique_address]] the_router_adds_no_bias_see_with_bias correction_bias = {};

  constexpr operator router_weights() const { return {.weight = weight}; }
};

/// The gates of `router::stratified`. The matrix of gate i is [experts, hidden] without the experts of lower strata, and so
/// are its biases.
template <int Strata, class Weights>
struct stratum_gates {
  Weights gate[Strata] = {};
  [[no_unique_address]] each_stratum_has_a_gate_see_gate weight = {};
};

/// (h - mean) / sqrt(variance + epsilon) * weight + bias.
struct layer_norm {
  float const* weight = nullptr;  ///< [hidden]
  float const* bias = nullptr;    ///< [hidden]
  float epsilon = 1e-5f;
};

/// The norms of `router::stratified`: a token that has left stratum i gets norm i, whatever stratum it was in before.
template <int Strata>
struct stratum_norms {
  layer_norm after[Strata] = {};
};

template <class Element>
struct expert_biases {
  bias_view<Element> gate = {};  ///< [experts, intermediate]; read by gated experts
  bias_view<Element> up = {};    ///< [experts, intermediate]
  bias_view<Element> down = {};  ///< [experts, hidden]
};

/// The shared expert's matrices; `expert_stride` is not used.
template <class Element>
struct shared_expert_weights {
  weight_view<Element> gate_proj = {};  ///< [shared_intermediate, hidden]; read where the expert is gated
  weight_view<Element> up_proj = {};    ///< [shared_intermediate, hidden]
  weight_view<Element> down_proj = {};  ///< [hidden, shared_intermediate]
  Element const* gate = nullptr;        ///< [hidden]; read by shared_gate::sigmoid
};

/// What a layer takes as its router's weights: of each gate, and of all.
template <class Layer>
using gate_weights_of = std::conditional_t<Layer::router_traits.bias || Layer::router_traits.correction_bias,
                                           router_weights, plain_router_weights>;
template <class Layer>
using router_weights_of =
    std::conditional_t<(Layer::router_traits.stratification.strata > 0),
                       stratum_gates<Layer::strata_or_one, gate_weights_of<Layer>>, gate_weights_of<Layer>>;

/// The weights of one layer, owned by the caller.
template <class Layer>
struct layer_weights {
  using element = typename Layer::element;

  /// [experts, hidden] float, and the biases that the router's traits ask for; with `router::stratified` for each stratum.
  [[no_unique_address]] std::conditional_t<
      Layer::router_traits.precomputed, routes_are_precomputed_see_routes,
      std::conditional_t<Layer::router_traits.gate == gate_owner::model, the_model_owns_the_router_see_shared_router,
                         router_weights_of<Layer>>>
      router = {};
  [[no_unique_address]] std::conditional_t<Layer::expert_traits.gated, weight_view<element>, the_expert_has_no_gate>
      gate_proj = {};                   ///< [experts, intermediate, hidden]
  weight_view<element> up_proj = {};    ///< [experts, intermediate, hidden]
  weight_view<element> down_proj = {};  ///< [experts, hidden, intermediate]
  [[no_unique_address]] std::conditional_t<Layer::expert_traits.bias, expert_biases<element>, the_expert_has_no_bias>
      bias = {};
  [[no_unique_address]] std::conditional_t<(Layer::expert_traits.shared_intermediate > 0),
                                           shared_expert_weights<element>, the_layer_has_no_shared_expert>
      shared = {};
  [[no_unique_address]] std::conditional_t<(Layer::router_traits.stratification.strata > 0 &&
                                            Layer::router_traits.stratification.norms),
                                           stratum_norms<Layer::strata_or_one>, the_router_has_no_norms>
      norm = {};
};

/// Routes that the caller made, for `router::precomputed`. An id of -1 is no expert of this layer, such as one that another
/// device has: the pair takes no row and no slot, counts in no load and adds nothing, and its weight is not read (but for a
/// first one, which is the token's priority). An id or a weight that is none of that makes the outputs of its token NaN on a
/// GPU, and on the CPU, which checks it, is an error unless `cpu_context::unroutable` says otherwise.
struct precomputed_routes {
  std::int32_t const* experts = nullptr;  ///< [tokens, top_k], ids from 0 to experts - 1, or -1
  float const* weights = nullptr;         ///< [tokens, top_k], finite
};

/// The clusters of the tokens, for `router::adaptive_clustering`: experts of this layer's number, of the layer before.
struct token_clusters {
  /// [tokens, choices]: `decisions.experts` of the previous MoE layer. This call may write its own to the same memory. A token
  /// without a cluster, whose label is no expert, cannot be routed.
  std::int32_t const* labels = nullptr;
  int choices = 1;  ///< that layer's top_k; the first choice of a token is its cluster
  /// [experts, hidden] weights of the features, collected before; null: they are computed from these tokens.
  float const* feature_scale = nullptr;
};

/// Where `forward` writes what it decided: every value is written anew, none is added to. Pointers may be null.
///
/// A pair that goes nowhere has the expert -1. Its weight is 0 where the row is not active or the caller's route says -1, and NaN
/// where the token could not be routed (see `decide`): that is how such a token is told from others.
///
/// With `router::stratified` the arrays by token are [strata, tokens, top_k], a row of them for each pass; the expert is -1
/// where a token makes no such pass, and for choices beyond the experts of the last strata. Counts are sums of the passes.
struct decisions {
  std::int32_t* experts = nullptr;  ///< [tokens, top_k] in the order of choice; -1 for pairs that go nowhere
  float* weights = nullptr;         ///< [tokens, top_k] combine weights of the experts' outputs; 0 where dropped
  std::uint8_t* dropped = nullptr;  ///< [tokens, top_k] 1 where the expert had no slot left
  std::int64_t* counts = nullptr;   ///< [experts] rows that each expert computed
  std::int64_t* load = nullptr;     ///< [experts] pairs that chose each expert, dropped ones included
  float* logits = nullptr;  ///< [tokens, experts] router output, bias included; not with `precomputed`, `stratified`
  float* feature_scale = nullptr;  ///< [experts, hidden] weights by cluster; with `adaptive_clustering` alone
  float* dispersion = nullptr;     ///< [experts, hidden] deviations by cluster; with it and computed weights
  std::uint8_t* passes = nullptr;  ///< [tokens] passes that each token made, 0 for padding; with `stratified` alone
};

/// What one `forward` reads and writes. Initialise by name, in this order.
template <class Layer>
struct forward_args {
  using element = typename Layer::element;

  view<element const> tokens = {};  ///< [tokens, hidden]
  /// [tokens, hidden], for `router::stratified`: what the block adds to its first pass, the tokens before the block's norm.
  [[no_unique_address]] std::conditional_t<(Layer::router_traits.stratification.strata > 0), view<element const>,
                                           the_router_has_no_strata>
      residual = {};
  layer_weights<Layer> weights = {};
  /// [tokens, hidden]; may be `tokens` or `residual` itself, must not overlap them otherwise, nor anything else
  view<element> output = {};
  /// At least `workspace_bytes(tokens)`, 16-byte aligned, for this call alone while it runs: two at the same time need two.
  std::span<std::byte> workspace = {};
  /// The model's router weight, for `router::shared`.
  [[no_unique_address]] std::conditional_t<
      Layer::router_traits.precomputed, routes_are_precomputed_see_routes,
      std::conditional_t<Layer::router_traits.gate == gate_owner::model, router_weights_of<Layer>,
                         the_layer_owns_the_router_see_weights>>
      shared_router = {};
  [[no_unique_address]] std::conditional_t<Layer::router_traits.precomputed, precomputed_routes,
                                           the_router_makes_the_routes>
      routes = {};
  [[no_unique_address]] std::conditional_t<Layer::router_traits.clustering.scales, token_clusters,
                                           the_router_has_no_clusters>
      clusters = {};
  /// Capacity and queues are per group of so many rows, padding included; 0: one group, and with `router::stratified` always.
  std::int64_t tokens_per_group = 0;
  std::uint8_t const* active = nullptr;  ///< [tokens]; 0 marks a padding row: not routed, output 0
  switchyard::decisions decisions = {};
  [[no_unique_address]] std::conditional_t<Layer::router_traits.precomputed, auxiliary_values_need_logits,
                                           auxiliary_values*>
      auxiliary = {};  ///< with `router::stratified` the mean over the passes that were made
};

namespace detail {

/// Naming a function here makes the compiler look at its body, where policies state what they refuse.
template <auto Function>
inline constexpr bool is_compiled = true;

/// The experts in a router's strata, or those of the layer where there are none.
template <class Router, int Experts>
constexpr int experts_in_strata() {
  if constexpr (Router::traits.stratification.strata > 0) {
    return Router::first_expert(Router::traits.stratification.strata);
  } else {
    return Experts;
  }
}

}  // namespace detail

/// One Mixture-of-Experts layer, everything but the number of tokens known at compile time.
///
/// It has no state: `workspace_bytes` and `forward` are static, and the caller owns all memory. `Router`,
/// `Capacity`, `Expert` and `Backend` model `router_policy`, `capacity_policy`, `expert_policy` and
/// `backend_policy`; `Element` is what tokens and expert weights are stored as.
template <shape Dims, class Router, class Capacity, class Expert, class Backend = backend::cpu, class Element = float>
struct layer {
  static_assert(Dims.hidden >= 1, "switchyard: shape.hidden is the width of a token. Set it to at least 1.");
  static_assert(Dims.intermediate >= 1,
                "switchyard: shape.intermediate is the inner width of an expert. Set it to at least 1.");
  static_assert(Dims.experts >= 1, "switchyard: shape.experts is the number of routed experts. Set it to at least 1.");
  static_assert(Dims.top_k >= 1, "switchyard: shape.top_k is the number of experts per token. Set it to at least 1.");
  static_assert(Dims.top_k <= Dims.experts,
                "switchyard: shape.top_k is larger than shape.experts. Lower top_k or add experts.");
  static_assert(router_policy<Router>,
                "switchyard: the second argument of layer is no router. A router has a name, traits and "
                "template <int TopK, int Experts, class Lanes> static route<TopK> select(Lanes, per_expert<Experts, "
                "Lanes> const&, router_weights const&); see router/router_policy.hpp.");
  static_assert(capacity_policy<Capacity>,
                "switchyard: the third argument of layer is no capacity. A capacity has a name, traits and "
                "static std::int64_t slots_per_expert(shape, std::int64_t tokens); see "
                "capacity/capacity_policy.hpp.");
  static_assert(expert_policy<Expert>,
                "switchyard: the fourth argument of layer is no expert. An expert has a name, traits and an "
                "activation type that fits traits.gated; see expert/expert_policy.hpp.");
  static_assert(detail::is_compiled<&Router::template select<Dims.top_k, Dims.experts, serial_lanes>>,
                "switchyard: the router refuses this shape.");
  static_assert(
      detail::experts_in_strata<Router, Dims.experts>() == Dims.experts,
      "switchyard: the strata of router::stratified have together not as many experts as the layer. Make their "
      "sizes add up to shape.experts.");
  static_assert(
      Router::traits.stratification.strata == 0 || !Capacity::traits.counts_padding,
      "switchyard: capacity::counting_padding in a layer of router::stratified: a pass has no padding that it could "
      "count. Take the wrapper away.");
  static_assert(Router::traits.stratification.strata == 0 || Expert::traits.shared_intermediate == 0,
                "switchyard: router::stratified makes several passes, and no publication says which of them a shared "
                "expert sees. Take expert::with_shared away, and compute it beside the layer.");
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
  static constexpr int strata_or_one =
      router_traits.stratification.strata > 0 ? router_traits.stratification.strata : 1;

  using weights = layer_weights<layer>;
  using args = forward_args<layer>;
  using context = typename Backend::context;

  /// So many rows of the layer's width, back to back: tokens or output.
  static constexpr view<element const> rows(element const* first, std::int64_t tokens) {
    return {first, tokens, Dims.hidden};
  }
  static constexpr view<element> rows(element* first, std::int64_t tokens) { return {first, tokens, Dims.hidden}; }

  /// Gate or up projections of all experts, back to back: [experts, intermediate, hidden].
  static constexpr weight_view<element> in_proj(element const* first) {
    return weight_view<element>::packed(first, Dims.intermediate, Dims.hidden);
  }
  /// Down projections of all experts, back to back: [experts, hidden, intermediate].
  static constexpr weight_view<element> out_proj(element const* first) {
    return weight_view<element>::packed(first, Dims.hidden, Dims.intermediate);
  }
  /// Gate and up projections of all experts in one tensor.
  static constexpr gate_up_views<element> split_gate_up(element const* first,
                                                        gate_up_order order = gate_up_order::concatenated,
                                                        storage stored = storage::output_major) {
    return switchyard::split_gate_up(first, Dims.intermediate, Dims.hidden, order, stored);
  }
  /// Gate or up biases of all experts, back to back: [experts, intermediate].
  static constexpr bias_view<element> in_bias(element const* first) {
    return bias_view<element>::packed(first, Dims.intermediate);
  }
  /// Down biases of all experts, back to back: [experts, hidden].
  static constexpr bias_view<element> out_bias(element const* first) {
    return bias_view<element>::packed(first, Dims.hidden);
  }
  /// The shared expert's gate or up projection: [shared_intermediate, hidden].
  static constexpr weight_view<element> shared_in_proj(element const* first) {
    return weight_view<element>::packed(first, expert_traits.shared_intermediate, Dims.hidden);
  }
  /// The shared expert's down projection: [hidden, shared_intermediate].
  static constexpr weight_view<element> shared_out_proj(element const* first) {
    return weight_view<element>::packed(first, Dims.hidden, expert_traits.shared_intermediate);
  }

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
    check(a);
    Backend::template forward<layer>(a, where);
  }

  /// Throws `error` when an argument does not fit. `forward` calls it; so does a backend that offers single steps.
  static void check(args const& a) {
    using namespace checks;
    std::int64_t const tokens = a.tokens.rows;
    if (tokens < 0 || tokens > most_tokens) fail_tokens("layer::forward", most_tokens, tokens);
    check_matrix(a.tokens, "tokens", tokens, Dims.hidden);
    check_matrix(a.output, "output", tokens, Dims.hidden);
    check_weights(a.weights);
    if constexpr (router_traits.precomputed) {
      if (tokens > 0) {
        check_pointer(a.routes.experts, "routes.experts", "[tokens, top_k] int32");
        check_pointer(a.routes.weights, "routes.weights", "[tokens, top_k] float");
      }
      check_absent(a.decisions.logits != nullptr, "decisions.logits",
                   "a null pointer, for precomputed routes have no logits");
    } else if constexpr (router_traits.stratification.strata == 0) {
      if constexpr (router_traits.gate == gate_owner::model) {
        check_router(a.shared_router, {"shared_router."});
      } else {
        check_router(a.weights.router, {"weights.router."});
      }
    }
    check_strata(a);
    check_clusters(a);
    if (a.tokens_per_group < 0) {
      fail("layer::forward, tokens_per_group", "0 (one group) or more", std::to_string(a.tokens_per_group));
    }
    std::size_t const needed = workspace_bytes(tokens);
    check_workspace(a.workspace.data(), a.workspace.size(), needed, tokens);
    check_overlap(a, needed);
  }

 private:
  /// Rows and pairs are numbered with 32 bits; offsets in memory are 64 bits wide.
  static constexpr std::int64_t most_tokens = (std::int64_t{1} << 31) / Dims.top_k - 1;

  static void check_router(router_weights const& w, checks::owner const& of) {
    checks::check_pointer(w.weight, "weight", "[experts, hidden] float", of);
    // A bias that would not be read is refused, unless it is given as the other one, too.
    if constexpr (router_traits.bias) {
      checks::check_pointer(w.bias, "bias", "[experts] float", of);
    } else {
      checks::check_absent(w.bias != nullptr && w.bias != w.correction_bias, "bias",
                           "a null pointer, for the router adds none to the logits (router::with_bias does)", of);
    }
    if constexpr (router_traits.correction_bias) {
      checks::check_pointer(w.correction_bias, "correction_bias", "[experts] float", of);
    } else {
      checks::check_absent(w.correction_bias != nullptr && w.correction_bias != w.bias, "correction_bias",
                           "a null pointer, for the router's selection adds none (selection::corrected does)", of);
    }
  }

  static void check_strata(args const& a) {
    if constexpr (router_traits.stratification.strata > 0) {
      checks::check_matrix(a.residual, "residual", a.tokens.rows, Dims.hidden);
      for (int stratum = 0; stratum < strata_or_one; ++stratum) check_stratum(a, stratum);
      if (a.tokens_per_group != 0) {
        fail("layer::forward, tokens_per_group", "0, for each pass of router::stratified is one group",
             std::to_string(a.tokens_per_group));
      }
      checks::check_absent(a.decisions.logits != nullptr, "decisions.logits",
                           "a null pointer, for each stratum has logits of its own");
    } else {
      checks::check_absent(a.decisions.passes != nullptr, "decisions.passes",
                           "a null pointer, for the router is no router::stratified");
    }
  }

  static void check_stratum(args const& a, int stratum) {
    if constexpr (router_traits.gate == gate_owner::model) {
      check_router(a.shared_router.gate[stratum], {"shared_router.gate", stratum});
    } else {
      check_router(a.weights.router.gate[stratum], {"weights.router.gate", stratum});
    }
    if constexpr (router_traits.stratification.norms) {
      checks::owner const of{"weights.norm.after", stratum};
      layer_norm const& norm = a.weights.norm.after[stratum];
      checks::check_pointer(norm.weight, "weight", "[hidden] float", of);
      checks::check_pointer(norm.bias, "bias", "[hidden] float", of);
      if (!(norm.epsilon >= 0.0f)) {
        fail(std::string("layer::forward, ").append(of.text()).append("epsilon"), "0 or more",
             std::to_string(norm.epsilon));
      }
    }
  }

  static void check_clusters(args const& a) {
    if constexpr (router_traits.clustering.scales) {
      if (a.tokens.rows > 0) {
        checks::check_pointer(
            a.clusters.labels, "clusters.labels",
            "[tokens, choices] int32, the previous MoE layer's decisions.experts (a first layer takes the base "
            "router)");
      }
      if (a.clusters.choices < 1) {
        fail("layer::forward, clusters.choices", "at least 1", std::to_string(a.clusters.choices));
      }
      checks::check_absent(a.clusters.feature_scale != nullptr && a.decisions.dispersion != nullptr,
                           "decisions.dispersion", "a null pointer, for clusters.feature_scale is given");
    } else {
      checks::check_absent(a.decisions.feature_scale != nullptr || a.decisions.dispersion != nullptr,
                           "decisions.feature_scale and dispersion",
                           "null pointers, for the router is no router::adaptive_clustering");
    }
  }

  static void check_weights(weights const& w) {
    using namespace checks;
    constexpr int inner = Dims.intermediate, shared_inner = expert_traits.shared_intermediate;
    if constexpr (expert_traits.gated) {
      check_weight(w.gate_proj, "weights.gate_proj", "[experts, intermediate, hidden]", Dims.experts, inner,
                   Dims.hidden);
    }
    check_weight(w.up_proj, "weights.up_proj", "[experts, intermediate, hidden]", Dims.experts, inner, Dims.hidden);
    check_weight(w.down_proj, "weights.down_proj", "[experts, hidden, intermediate]", Dims.experts, Dims.hidden, inner);
    if constexpr (expert_traits.bias) {
      if constexpr (expert_traits.gated) {
        check_bias(w.bias.gate, "weights.bias.gate", "[experts, intermediate]", Dims.experts, inner);
      }
      check_bias(w.bias.up, "weights.bias.up", "[experts, intermediate]", Dims.experts, inner);
      check_bias(w.bias.down, "weights.bias.down", "[experts, hidden]", Dims.experts, Dims.hidden);
    }
    if constexpr (shared_inner > 0) {
      if constexpr (expert_traits.gated) {
        check_weight(w.shared.gate_proj, "weights.shared.gate_proj", "[shared intermediate, hidden]", 1, shared_inner,
                     Dims.hidden);
      }
      check_weight(w.shared.up_proj, "weights.shared.up_proj", "[shared intermediate, hidden]", 1, shared_inner,
                   Dims.hidden);
      check_weight(w.shared.down_proj, "weights.shared.down_proj", "[hidden, shared intermediate]", 1, Dims.hidden,
                   shared_inner);
      if constexpr (expert_traits.gate == shared_gate::sigmoid) {
        check_pointer(w.shared.gate, "weights.shared.gate", "[hidden]");
      }
    }
  }

  /// What a call writes must be apart from all that it reads, and from all else that it writes.
  static void check_overlap(args const& a, std::size_t workspace_bytes) {
    using namespace checks;
    std::int64_t const tokens = a.tokens.rows, pairs = strata_or_one * tokens * Dims.top_k;
    written_memory list;
    list.write("workspace", a.workspace.data(), static_cast<std::int64_t>(workspace_bytes));
    list.write("output", a.output);
    decisions const& to = a.decisions;
    list.write("decisions.experts", to.experts, pairs);
    list.write("decisions.weights", to.weights, pairs);
    list.write("decisions.dropped", to.dropped, pairs);
    list.write("decisions.counts", to.counts, Dims.experts);
    list.write("decisions.load", to.load, Dims.experts);
    list.write("decisions.logits", to.logits, tokens * Dims.experts);
    list.write("decisions.feature_scale", to.feature_scale, std::int64_t{Dims.experts} * Dims.hidden);
    list.write("decisions.dispersion", to.dispersion, std::int64_t{Dims.experts} * Dims.hidden);
    list.write("decisions.passes", to.passes, tokens);
    if constexpr (!router_traits.precomputed) list.write("auxiliary", a.auxiliary, 1);

    list.read("active", a.active, tokens);
    if constexpr (router_traits.precomputed) {
      list.read("routes.experts", a.routes.experts, pairs, "decisions.experts");
      list.read("routes.weights", a.routes.weights, pairs, "decisions.weights");
    } else if constexpr (router_traits.gate == gate_owner::model) {
      list_router(a.shared_router, list);
    } else {
      list_router(a.weights.router, list);
    }
    if constexpr (router_traits.clustering.scales) {
      // The first layer's choices may make room for this one's.
      list.read("clusters.labels", a.clusters.labels, tokens * a.clusters.choices, "decisions.experts");
      list.read("clusters.feature_scale", a.clusters.feature_scale, std::int64_t{Dims.experts} * Dims.hidden);
    }
    if constexpr (router_traits.stratification.norms && router_traits.stratification.strata > 0) {
      for (layer_norm const& norm : a.weights.norm.after) {
        list.read("weights.norm", norm.weight, Dims.hidden);
        list.read("weights.norm", norm.bias, Dims.hidden);
      }
    }
    list_experts(a.weights, list);

    if (tokens == 0) return;
    check_output(a.output, a.tokens, "tokens");
    list.read("tokens", a.tokens, "output");
    if constexpr (router_traits.stratification.strata > 0) {
      check_output(a.output, a.residual, "residual");
      list.read("residual", a.residual, "output");
    }
  }

  static void list_router(router_weights const& w, checks::written_memory const& list, int experts = Dims.experts) {
    list.read("the router's weight", w.weight, std::int64_t{experts} * Dims.hidden);
    if constexpr (router_traits.bias) list.read("the router's bias", w.bias, experts);
    if constexpr (router_traits.correction_bias) list.read("the router's correction_bias", w.correction_bias, experts);
  }
  template <int Strata, class Weights>
  static void list_router(stratum_gates<Strata, Weights> const& w, checks::written_memory const& list) {
    for (int i = 0; i < Strata; ++i) list_router(w.gate[i], list, Dims.experts - Router::first_expert(i));
  }

  static void list_experts(weights const& w, checks::written_memory const& list) {
    constexpr int inner = Dims.intermediate, shared_inner = expert_traits.shared_intermediate;
    if constexpr (expert_traits.gated) list.read("weights.gate_proj", w.gate_proj, Dims.experts, inner, Dims.hidden);
    list.read("weights.up_proj", w.up_proj, Dims.experts, inner, Dims.hidden);
    list.read("weights.down_proj", w.down_proj, Dims.experts, Dims.hidden, inner);
    if constexpr (expert_traits.bias) {
      if constexpr (expert_traits.gated) list.read("weights.bias.gate", w.bias.gate, Dims.experts, inner);
      list.read("weights.bias.up", w.bias.up, Dims.experts, inner);
      list.read("weights.bias.down", w.bias.down, Dims.experts, Dims.hidden);
    }
    if constexpr (shared_inner > 0) {
      if constexpr (expert_traits.gated) {
        list.read("weights.shared.gate_proj", w.shared.gate_proj, 1, shared_inner, Dims.hidden);
      }
      list.read("weights.shared.up_proj", w.shared.up_proj, 1, shared_inner, Dims.hidden);
      list.read("weights.shared.down_proj", w.shared.down_proj, 1, Dims.hidden, shared_inner);
      if constexpr (expert_traits.gate == shared_gate::sigmoid)
        list.read("weights.shared.gate", w.shared.gate, Dims.hidden);
    }
  }
};

}  // namespace switchyard
