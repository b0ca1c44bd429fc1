#pragma once

#include <switchyard/core/absent.hpp>
#include <switchyard/core/shape.hpp>
#include <switchyard/expert/activation.hpp>

#include <concepts>
#include <cstdint>
#include <string_view>
#include <type_traits>

namespace switchyard {

/// What multiplies the output of a shared expert.
enum class shared_gate {
  none,    ///< nothing
  sigmoid  ///< sigmoid(token . gate vector), one value per token (Qwen2-MoE)
};

/// By what `expert::top_k_units` ranks the inner values of a row.
enum class unit_ranking {
  value,            ///< the value
  norm_compensated  ///< the value times the L2 norm of what the down projection has for it
};

/// How many experts a router may choose that compute nothing, of each kind, in the order of their ids: see expert/null_experts.hpp.
struct null_experts {
  int constant = 0;        ///< add a vector
  int mixed_constant = 0;  ///< add a mixture of the token and a vector
  int identity = 0;        ///< add the token
  int zero = 0;            ///< add nothing

  constexpr int count() const { return constant + mixed_constant + identity + zero; }
  constexpr int vectors() const { return constant + mixed_constant; }
};

struct expert_traits {
  bool gated = false;       ///< true: gate, up and down projection; false: up and down
  bool bias = false;        ///< every projection of the routed experts has a bias
  int scale_numerator = 1;  ///< routed experts' results are multiplied by a constant fraction
  int scale_denominator = 1;
  int shared_intermediate = 0;  ///< inner width of the shared expert; 0: there is none
  shared_gate gate = shared_gate::none;
  bool output_bias = false;  ///< one vector is added to the sum over a token's experts
  int kept_units = 0;        ///< the second product sees so many of a row's inner values, the largest; 0: all
  unit_ranking ranking = unit_ranking::value;  ///< of inner values, where some are kept
  bool one_bias = false;  ///< biases of the routed experts' projections, where they have some, are one for all experts
  null_experts nulls = {};  ///< experts of the router's beyond those of the shape

  constexpr int input_projections() const { return gated ? 2 : 1; }
};

/// Parameters of a layer's experts, for `costs`.
struct expert_costs {
  std::int64_t matrices = 0;  ///< of one routed expert: each is a multiplication and an addition for every row
  std::int64_t vectors = 0;   ///< of one routed expert's biases
  std::int64_t shared = 0;    ///< of the shared expert, or of other matrices that every token meets
  std::int64_t output = 0;    ///< of what is added to every token's sum
  std::int64_t common = 0;    ///< of a routed expert's, those that all have in common
  std::int64_t copies =
      0;  ///< so many there are of the rest, by which experts may be put together; 0: each has its own
  std::int64_t repeated =
      0;  ///< of one routed expert, what `matrices` counts again: factors that several projections share
  std::int64_t others = 0;  ///< of one routed expert, what a row of it does not meet: other adapters
  std::int64_t nulls = 0;   ///< of the null experts together
};

/// An expert says what it computes, and what its weights are: see expert/feed_forward.hpp, which it inherits.
template <class Expert>
concept expert_policy = requires {
  { Expert::name } -> std::convertible_to<std::string_view>;
  { Expert::traits } -> std::convertible_to<expert_traits>;
  typename Expert::computation;
};

struct the_experts_take_no_inputs {
  template <class T>
  static constexpr void refuse() {
    static_assert(
        sizeof(T) == 0,
        "switchyard: the experts of this layer take no inputs but the tokens. Wrap them in expert::adapters, or "
        "leave .expert_inputs out.");
  }
};
/// `.expert_inputs` of an expert that takes none, with the members of those that do.
struct absent_expert_inputs {
  [[no_unique_address]] absent<the_experts_take_no_inputs> adapter = {};
  [[no_unique_address]] absent<the_experts_take_no_inputs> scale = {};
};

/// Whether an expert takes more of a call than tokens, as `.expert_inputs`: it names their type as `inputs<Layer>`, and has
/// `check_inputs<Layer>(args)` and `list_inputs<Layer>(args, memory)`.
template <class Layer>
inline constexpr bool takes_expert_inputs = requires {
  typename Layer::expert::template inputs<Layer>;
};

namespace detail {

template <class Layer>
constexpr auto expert_inputs_type() {
  if constexpr (takes_expert_inputs<Layer>) {
    return std::type_identity<typename Layer::expert::template inputs<Layer>>{};
  } else {
    return std::type_identity<absent_expert_inputs>{};
  }
}

}  // namespace detail

template <class Layer>
using expert_inputs_of = typename decltype(detail::expert_inputs_type<Layer>())::type;

/// How a layer runs over its tokens: as its router says, unless its experts need no plan.
template <class Layer>
constexpr auto schedule_of() {
  if constexpr (requires { typename Layer::expert::schedule; }) {
    return std::type_identity<typename Layer::expert::schedule>{};
  } else {
    return std::type_identity<typename Layer::router::schedule>{};
  }
}

/// Whether the activation of an expert takes what its projections make.
template <class Expert>
concept activation_fits = (Expert::traits.gated && gated_activation<typename Expert::activation>) ||
                          (!Expert::traits.gated && activation<typename Expert::activation>);

}  // namespace switchyard
