#pragma once

#include <switchyard/core/text.hpp>
#include <switchyard/core/with.hpp>
#include <switchyard/router/by_logits.hpp>

#include <cstdint>
#include <string_view>
#include <type_traits>

namespace switchyard {

/// What `router::with_router_input` sees, as `.inputs`.
template <class Element>
struct router_inputs {
  view<Element const> tokens = {};  ///< [tokens, width]
};

namespace router {

template <int Width>
struct features_of_the_caller {
  static constexpr int width = Width;
};

/// The router sees other rows than the experts, of a width of its own: tokens before their projection to a latent width, or before or
/// after a norm that the experts' tokens have not. The router weight is [experts, Width].
template <class Base, int Width>
struct with_router_input : Base {
  static_assert(makes_logits<Base>,
                "switchyard: a router without logits, such as router::precomputed, looks at no tokens, so "
                "router::with_router_input "
                "would change nothing. Wrap a router that makes logits.");
  static_assert(Width >= 1, "switchyard: router::with_router_input needs the width of a row, at least 1.");
  static_assert(std::is_same_v<typename Base::features, features_as_they_are> &&
                    std::is_same_v<typename Base::schedule, one_pass> && !Base::traits.takes_inputs,
                "switchyard: router::with_router_input takes .inputs for the router's rows, and the router that it "
                "wraps takes them, too. "
                "Take one of the two.");
  static constexpr auto label = "with_router_input<" + name_of<Base>() + "," + decimal<Width>() + ">";
  static constexpr std::string_view name = label;
  static constexpr router_traits traits = with(Base::traits, &router_traits::takes_inputs, true);
  using features = features_of_the_caller<Width>;

  template <class Layer>
  using inputs = router_inputs<typename Layer::element>;

  template <class Layer>
  static void check(forward_args<Layer> const& args) {
    Base::template check<Layer>(args);
    checks::check_matrix(args.inputs.tokens, "inputs.tokens", args.tokens.rows, Width, "tokens x the router's width");
  }
  template <class Layer>
  static void list_read(forward_args<Layer> const& args, checks::written_memory const& memory) {
    Base::template list_weights<typename Layer::router>(weights_of(args), Layer::all_experts, Width, memory);
    memory.read("inputs.tokens", args.inputs.tokens, {});
  }
  template <class Layer>
  static constexpr router_costs costs() {
    router_costs result = Base::template costs<Layer>();
    result.all -= result.matrix;
    result.matrix = std::int64_t{Layer::all_experts} * Width;
    result.all += result.matrix;
    return result;
  }
};

}  // namespace router
}  // namespace switchyard
