#pragma once

#include <switchyard/auxiliary.hpp>
#include <switchyard/core/absent.hpp>
#include <switchyard/core/checks.hpp>
#include <switchyard/core/element.hpp>
#include <switchyard/core/shape.hpp>
#include <switchyard/core/text.hpp>
#include <switchyard/router/router_policy.hpp>

#include <concepts>
#include <cstdint>
#include <type_traits>

namespace switchyard {

template <class Layer>
struct forward_args;

/// What a router costs beside its product, for `costs`.
struct router_costs {
  std::int64_t matrix = 0;   ///< parameters of the router weight that one token meets
  std::int64_t vectors = 0;  ///< of its biases
  std::int64_t all = 0;      ///< parameters that its owner stores
  std::int64_t layers = 0;   ///< parameters that the layer stores, whoever owns the router
  int matrix_bytes = 4;      ///< of a parameter of the matrix
};

namespace router {

// Why a member is absent. A sentence stands beside the policy that owns it; these are those of every router that chooses by logits.
struct the_model_owns_the_router {
  template <class T>
  static constexpr void refuse() {
    static_assert(sizeof(T) == 0,
                  "switchyard: router::shared keeps one router weight for all layers, and the model owns it. Set "
                  ".shared_router in the arguments of forward instead of .weights.router.");
  }
};
struct the_layer_owns_the_router {
  template <class T>
  static constexpr void refuse() {
    static_assert(
        sizeof(T) == 0,
        "switchyard: this layer owns its router weight. Set .weights.router instead of .shared_router, or wrap "
        "the router in router::shared.");
  }
};
struct the_router_adds_no_bias {
  template <class T>
  static constexpr void refuse() {
    static_assert(
        sizeof(T) == 0,
        "switchyard: this router adds no bias to the logits and none to what it chooses by, so that it would ignore "
        "one. Wrap it in router::with_bias, or give router::top_k a selection with selection::corrected.");
  }
};
struct the_router_takes_no_inputs {
  template <class T>
  static constexpr void refuse() {
    static_assert(
        sizeof(T) == 0,
        "switchyard: this router takes nothing from .inputs: it decides by the tokens alone. router::precomputed takes "
        ".experts and .weights, router::adaptive_clustering takes .labels, router::stratified takes .residual and "
        ".norm, router::with_expert_dropout takes .seed, router::restricted takes .allowed.");
  }
};
struct the_router_has_no_clusters {
  template <class T>
  static constexpr void refuse() {
    static_assert(sizeof(T) == 0,
                  "switchyard: this router has no clusters whose weights it could report. Wrap it in "
                  "router::adaptive_clustering.");
  }
};
struct the_router_has_no_strata {
  template <class T>
  static constexpr void refuse() {
    static_assert(sizeof(T) == 0, "switchyard: this router makes one pass. Only router::stratified reports .passes.");
  }
};

/// A router weight that is not there, so that setting one of its members prints why.
template <class Why>
struct absent_weights {
  [[no_unique_address]] absent<Why> weight = {};
  [[no_unique_address]] absent<Why> bias = {};
  [[no_unique_address]] absent<Why> correction_bias = {};
};

/// `router_weights` of a router without biases.
struct plain_weights {
  float const* weight = nullptr;  ///< [experts, hidden], row-major
  [[no_unique_address]] absent<the_router_adds_no_bias> bias = {};
  [[no_unique_address]] absent<the_router_adds_no_bias> correction_bias = {};

  constexpr operator router_weights() const { return {.weight = weight}; }
};

/// The same where the matrix is stored as other elements.
template <class Element>
struct plain_stored_weights {
  Element const* weight = nullptr;  ///< [experts, hidden], row-major
  [[no_unique_address]] absent<the_router_adds_no_bias> bias = {};
  [[no_unique_address]] absent<the_router_adds_no_bias> correction_bias = {};

  constexpr operator router_weights() const { return {}; }
};

template <class Element, bool Biases>
using weights_stored_as =
    std::conditional_t<std::is_same_v<Element, float>, std::conditional_t<Biases, router_weights, plain_weights>,
                       std::conditional_t<Biases, stored_router_weights<Element>, plain_stored_weights<Element>>>;

/// `inputs` of a router that takes none, with the members of those that do.
template <class Why>
struct absent_inputs {
  [[no_unique_address]] absent<Why> experts = {};
  [[no_unique_address]] absent<Why> weights = {};
  [[no_unique_address]] absent<Why> labels = {};
  [[no_unique_address]] absent<Why> choices = {};
  [[no_unique_address]] absent<Why> feature_scale = {};
  [[no_unique_address]] absent<Why> residual = {};
  [[no_unique_address]] absent<Why> norm = {};
  [[no_unique_address]] absent<Why> tokens = {};
  [[no_unique_address]] absent<Why> seed = {};
  [[no_unique_address]] absent<Why> first_token = {};
  [[no_unique_address]] absent<Why> allowed = {};
};

/// Where `forward` writes what a router knows beside its decisions. Pointers may be null.
struct logits_report {
  float* logits = nullptr;  ///< [tokens, experts] router output, bias included
  [[no_unique_address]] absent<the_router_has_no_clusters> feature_scale = {};
  [[no_unique_address]] absent<the_router_has_no_clusters> dispersion = {};
  [[no_unique_address]] absent<the_router_has_no_strata> passes = {};
};

/// Naming a function here makes the compiler look at its body, where policies state what they refuse.
template <auto Function>
inline constexpr bool is_compiled = true;

/// The router weight of a call, wherever it stands.
template <class Layer>
auto const& weights_of(forward_args<Layer> const& args) {
  if constexpr (Layer::router::traits.owner == router_owner::model) {
    return args.shared_router;
  } else {
    return args.weights.router;
  }
}

/// What a router that chooses by logits is unless it says otherwise. A router inherits this, has a name, traits where some are on, and
///
///   template <int TopK, int Experts, class Lanes>
///   SWITCHYARD_HD static route<TopK> select(Lanes, per_expert<Experts, Lanes> const& logits, router_weights const&);
///
/// A wrapper inherits its base and replaces what it changes.
struct by_logits {
  static constexpr router_traits traits{};
  static constexpr int choices = 1;  ///< lists of chosen experts of a token, whose experts differ
  using weight_element = float;      ///< what the router weight is stored as
  using source = from_logits;
  using features = features_as_they_are;
  using schedule = one_pass;

  /// What stands in `.weights.router`, or, where the model owns it, in `.shared_router`.
  template <class Layer>
  using weights = weights_stored_as<typename Layer::router::weight_element,
                                    Layer::router::traits.bias || Layer::router::traits.correction_bias>;
  /// What stands in the place of the two that the router does not have.
  template <class Layer>
  using no_own_weights = absent_weights<the_model_owns_the_router>;
  template <class Layer>
  using no_shared_weights = absent_weights<the_layer_owns_the_router>;
  /// What a call hands in, as `.inputs`.
  template <class Layer>
  using inputs = absent_inputs<the_router_takes_no_inputs>;
  /// What a call may ask for beside `.decisions`, as `.report`.
  template <class Layer>
  using report = logits_report;
  template <class Layer>
  using auxiliary = auxiliary_values*;

  /// Refuses shapes, capacities and experts that do not go with the router. `Self` is the router with all its wrappers.
  template <class Self, shape Dims, class Capacity, class Expert>
  static constexpr bool fits() {
    static_assert(
        requires(serial_lanes lanes, per_expert<Dims.experts, serial_lanes> const& logits, router_weights const& w) {
          { Self::template select<Dims.top_k>(lanes, logits, w) } -> std::same_as<route<Dims.top_k>>;
        },
        "switchyard: a router that inherits router::by_logits needs template <int TopK, int Experts, class Lanes> "
        "static "
        "route<TopK> select(Lanes, per_expert<Experts, Lanes> const&, router_weights const&); see "
        "router/by_logits.hpp.");
    return is_compiled<&Self::template select<Dims.top_k, Dims.experts, serial_lanes>>;
  }

  /// Throws `error` when something of the call is missing.
  template <class Layer>
  static void check(forward_args<Layer> const& args) {
    constexpr bool of_model = Layer::router::traits.owner == router_owner::model;
    check_weights<typename Layer::router>(weights_of(args), {of_model ? "shared_router." : "weights.router."});
  }
  template <class Router, class Weights>
  static void check_weights(Weights const& stored, checks::owner const& of) {
    static constexpr auto shape_of_weight =
        "[experts, hidden] " + text_of<element_name<typename Router::weight_element>>();
    router_weights const w = stored;
    checks::check_pointer(stored.weight, "weight", shape_of_weight.characters, of);
    // A bias that would not be read is refused, unless it is given as the other one, too.
    if constexpr (Router::traits.bias) {
      checks::check_pointer(w.bias, "bias", "[experts] float", of);
    } else {
      checks::check_absent(w.bias != nullptr && w.bias != w.correction_bias, "bias",
                           "a null pointer, for the router adds none to the logits (router::with_bias does)", of);
    }
    if constexpr (Router::traits.correction_bias) {
      checks::check_pointer(w.correction_bias, "correction_bias", "[experts] float", of);
    } else {
      checks::check_absent(w.correction_bias != nullptr && w.correction_bias != w.bias, "correction_bias",
                           "a null pointer, for the router's selection adds none (selection::corrected does)", of);
    }
  }

  /// Names what a call writes, and then what it reads, so that what overlaps is refused.
  template <class Layer>
  static void list_written(forward_args<Layer> const& args, checks::written_memory& memory) {
    memory.write("report.logits", args.report.logits, args.tokens.rows * Layer::all_experts);
    memory.write("auxiliary", args.auxiliary, 1);
  }
  template <class Layer>
  static void list_read(forward_args<Layer> const& args, checks::written_memory const& memory) {
    list_weights<typename Layer::router>(weights_of(args), Layer::all_experts, Layer::dims.hidden, memory);
  }
  template <class Router, class Weights>
  static void list_weights(Weights const& stored, int experts, int hidden, checks::written_memory const& memory) {
    router_weights const w = stored;
    memory.read("the router's weight", stored.weight, std::int64_t{experts} * hidden);
    if constexpr (Router::traits.bias) memory.read("the router's bias", w.bias, experts);
    if constexpr (Router::traits.correction_bias) {
      memory.read("the router's correction_bias", w.correction_bias, experts);
    }
  }

  template <class Layer>
  static constexpr router_costs costs() {
    constexpr router_traits t = Layer::router::traits;
    router_costs result;
    result.matrix = std::int64_t{Layer::all_experts} * Layer::dims.hidden;
    result.vectors = std::int64_t{Layer::all_experts} * ((t.bias ? 1 : 0) + (t.correction_bias ? 1 : 0));
    result.all = result.matrix + result.vectors;
    result.matrix_bytes = sizeof(typename Layer::router::weight_element);
    return result;
  }
};

}  // namespace router
}  // namespace switchyard
