#pragma once

#include <switchyard/switchyard.hpp>

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

#include "layers.hpp"
#include "support/any_layer.hpp"
#include "support/described_layer.hpp"
#include "support/set_arguments.hpp"

/// Makes an `any_layer` of a layer. This is all that a unit includes to compile a list of layers; what does not depend on
/// the layer is in compile.cpp.
namespace support {

/// How the tests reach a backend: `memory` and `forward<Layer>(args, context)`, which returns when the work is done.
template <class Backend>
struct reached;
template <>
struct reached<sy::backend::cpu> {
  static memory_space memory() { return {}; }
  template <class Layer>
  static void forward(typename Layer::args const& args, sy::cpu_context const& context) {
    Layer::forward(args, context);
  }
};

/// `any_args` of a layer with such elements.
template <class Element>
struct typed_args {
  typed_args(any_args const& from, int hidden);

  sy::view<Element const> tokens;
  sy::view<Element> output;
  sy::weight_view<Element> up_proj, down_proj;
  optional_arguments<Element> optional;
};

template <class Element>
void store_elements(double const* from, std::size_t count, void* to);
template <class Element>
void load_elements(void const* from, std::size_t count, float* to);

template <class Layer>
void forward_any(any_args const& from, sy::cpu_context const& context) {
  typed_args<typename Layer::element> const typed(from, Layer::dims.hidden);
  typename Layer::args args{};
  args.tokens = typed.tokens;
  args.weights.up_proj = typed.up_proj;
  args.weights.down_proj = typed.down_proj;
  args.output = typed.output;
  args.workspace = from.workspace;
  args.tokens_per_group = from.tokens_per_group;
  args.active = from.active;
  args.decisions = from.decisions;
  set_arguments(args, typed.optional);
  reached<typename Layer::backend>::template forward<Layer>(args, context);
}

inline double dropout_probability(void const*) { return 0.0; }
template <class Base, int Numerator, int Denominator>
double dropout_probability(sy::router::with_expert_dropout<Base, Numerator, Denominator> const*) {
  return double(Numerator) / Denominator;
}

constexpr bool is_restricted(void const*) { return false; }
template <class Base>
constexpr bool is_restricted(sy::router::restricted<Base> const*) {
  return true;
}

template <class Router>
constexpr auto weight_element_type() {
  if constexpr (requires { typename Router::weight_element; }) {
    return std::type_identity<typename Router::weight_element>{};
  } else {
    return std::type_identity<float>{};
  }
}
template <class Router>
using weight_element_of = typename decltype(weight_element_type<Router>())::type;

template <class Router>
router_facts facts_of() {
  router_facts facts;
  facts.precomputed = !sy::makes_logits<Router>;
  facts.scales_features = sy::router::are_scaled_by_cluster<typename Router::features>;
  facts.given_experts = sy::is_given_experts<Router>;
  facts.by_words = std::is_base_of_v<sy::router::hash_layer, Router>;
  facts.bias = Router::traits.bias;
  facts.correction_bias = Router::traits.correction_bias;
  facts.weight_bytes = sizeof(weight_element_of<Router>);
  facts.expert_dropout = dropout_probability(static_cast<Router const*>(nullptr));
  facts.restricted = is_restricted(static_cast<Router const*>(nullptr));
  if constexpr (sy::router::climbs<typename Router::schedule>) facts.strata = Router::schedule::strata;
  return facts;
}

template <class Layer>
any_layer erase() {
  using element = typename Layer::element;
  return {.name = sy::describe<Layer>(),
          .router = facts_of<typename Layer::router>(),
          .capacity = Layer::capacity_traits,
          .expert = Layer::expert_traits,
          .reference = reference_config<Layer>(),
          .element = sy::element_name<element>,
          .element_bytes = sizeof(element),
          .memory = reached<typename Layer::backend>::memory(),
          .workspace_bytes = &Layer::workspace_bytes,
          .forward = &forward_any<Layer>,
          .store = &store_elements<element>,
          .load = &load_elements<element>,
          .store_router = &store_elements<weight_element_of<typename Layer::router>>,
          .load_router = &load_elements<weight_element_of<typename Layer::router>>};
}

/// Adds a layer to those of the program.
void add(any_layer layer);

template <class... Layers>
bool compile_all(std::tuple<Layers...> const*, bool everywhere = true) {
  auto const add_one = [&](any_layer layer) {
    layer.everywhere = everywhere;
    add(std::move(layer));
  };
  (add_one(erase<Layers>()), ...);
  return true;
}

/// Compiles a list of layers, moved to a backend, and adds it: for the initialiser of a static object.
template <class List, class Backend>
bool compile() {
  return compile_all(static_cast<tested::on<List, Backend> const*>(nullptr));
}

/// The same for the CPU, and the layers of a second list where the build asks for them.
template <class List, class More>
bool compile_on_cpu() {
  bool added = compile<List, switchyard::backend::cpu>();
#if defined(SWITCHYARD_MORE_LAYERS)
  added = compile_all(static_cast<More const*>(nullptr), false) && added;
#endif
  return added;
}

}  // namespace support
