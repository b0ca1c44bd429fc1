#pragma once

#include <switchyard/backend/backend_policy.hpp>
#include <switchyard/core/absent.hpp>
#include <switchyard/core/checks.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/operand.hpp>
#include <switchyard/core/shape.hpp>
#include <switchyard/core/view.hpp>
#include <switchyard/expert/expert_policy.hpp>

#include <cstdint>
#include <string>
#include <type_traits>

namespace switchyard {

template <class Layer>
struct own_router;

template <class Element>
struct expert_biases {
  bias_view<Element, projection::in> gate = {};   ///< [experts, intermediate]; read by gated experts
  bias_view<Element, projection::in> up = {};     ///< [experts, intermediate]
  bias_view<Element, projection::out> down = {};  ///< [experts, hidden]
};

/// The shared expert's matrices; `expert_stride` is not used.
template <class Element>
struct shared_expert_weights {
  weight_view<Element, projection::in> gate_proj =
      {};                                             ///< [shared_intermediate, hidden]; read where the expert is gated
  weight_view<Element, projection::in> up_proj = {};  ///< [shared_intermediate, hidden]
  weight_view<Element, projection::out> down_proj = {};  ///< [hidden, shared_intermediate]
  Element const* gate = nullptr;                         ///< [hidden]; read by shared_gate::sigmoid
};

/// What constant experts add, one row after the other: first those that are constant alone, then those that mix it with the token.
template <class Element>
struct constant_expert_weights {
  Element const* vectors = nullptr;  ///< [constant + mixed_constant, hidden]
  Element const* mixing =
      nullptr;  ///< [mixed_constant, 2, hidden], of the token and of the vector; read where there are some
};

namespace expert {

struct the_layer_has_no_constant_experts {
  template <class T>
  static constexpr void refuse() {
    static_assert(sizeof(T) == 0,
                  "switchyard: this layer has no constant experts. Give expert::with_null_experts some, or leave "
                  ".constant_experts out.");
  }
};
struct no_constant_expert_mixes {
  template <class T>
  static constexpr void refuse() {
    static_assert(sizeof(T) == 0,
                  "switchyard: the constant experts of this layer are vectors alone. Make them .mixed_constant in "
                  "expert::with_null_experts, or leave .constant_experts.mixing out.");
  }
};
struct the_expert_is_not_gated {
  template <class T>
  static constexpr void refuse() {
    static_assert(sizeof(T) == 0,
                  "switchyard: this expert has no gate projection: expert::mlp computes down(activation(up(x))). Take "
                  "expert::gated_mlp, or leave .gate_proj out.");
  }
};
struct the_expert_has_no_biases {
  template <class T>
  static constexpr void refuse() {
    static_assert(
        sizeof(T) == 0,
        "switchyard: the projections of this expert have no biases. Wrap it in expert::with_bias, or leave .bias out.");
  }
};
struct the_layer_has_no_shared_expert {
  template <class T>
  static constexpr void refuse() {
    static_assert(
        sizeof(T) == 0,
        "switchyard: this layer has no shared expert. Wrap its expert in expert::with_shared, or leave .shared out.");
  }
};

struct the_layer_has_no_output_bias {
  template <class T>
  static constexpr void refuse() {
    static_assert(sizeof(T) == 0,
                  "switchyard: nothing is added to the sum over this layer's experts. Wrap the expert in "
                  "expert::with_output_bias, or leave .output_bias out.");
  }
};

struct the_units_are_ranked_by_value {
  template <class T>
  static constexpr void refuse() {
    static_assert(sizeof(T) == 0,
                  "switchyard: no norms are read where inner values are not ranked by them. Give expert::top_k_units "
                  "unit_ranking::norm_compensated, or leave .unit_norms out.");
  }
};

struct the_experts_are_in_a_cache {
  template <class T>
  static constexpr void refuse() {
    static_assert(sizeof(T) == 0,
                  "switchyard: the weights of routed experts are in the cache of backend::offloaded. Set "
                  ".experts = cache.layer(number), and leave .gate_proj, .up_proj, .down_proj and .bias out.");
  }
};
struct the_experts_are_in_memory {
  template <class T>
  static constexpr void refuse() {
    static_assert(sizeof(T) == 0,
                  "switchyard: this layer reads its experts where .gate_proj, .up_proj and .down_proj say. Take "
                  "backend::offloaded, or leave .experts out.");
  }
};

/// `.bias` and `.shared` of an expert that has none, with the members of those that do.
struct absent_biases {
  [[no_unique_address]] absent<the_expert_has_no_biases> gate = {};
  [[no_unique_address]] absent<the_expert_has_no_biases> up = {};
  [[no_unique_address]] absent<the_expert_has_no_biases> down = {};
};
/// `.bias` where it is in the cache.
struct cached_biases {
  [[no_unique_address]] absent<the_experts_are_in_a_cache> gate = {};
  [[no_unique_address]] absent<the_experts_are_in_a_cache> up = {};
  [[no_unique_address]] absent<the_experts_are_in_a_cache> down = {};
};
struct absent_shared_expert {
  [[no_unique_address]] absent<the_layer_has_no_shared_expert> gate_proj = {};
  [[no_unique_address]] absent<the_layer_has_no_shared_expert> up_proj = {};
  [[no_unique_address]] absent<the_layer_has_no_shared_expert> down_proj = {};
  [[no_unique_address]] absent<the_layer_has_no_shared_expert> gate = {};
};

struct absent_constant_experts {
  [[no_unique_address]] absent<the_layer_has_no_constant_experts> vectors = {};
  [[no_unique_address]] absent<the_layer_has_no_constant_experts> mixing = {};
};
/// `constant_expert_weights` where none mixes.
template <class Element>
struct plain_constant_experts {
  Element const* vectors = nullptr;  ///< [constant, hidden]
  [[no_unique_address]] absent<no_constant_expert_mixes> mixing = {};
};
template <class Element, bool AreThere, bool Mix>  // g++ crashes where it is given the numbers
using constant_experts_of =
    std::conditional_t<Mix, constant_expert_weights<Element>,
                       std::conditional_t<AreThere, plain_constant_experts<Element>, absent_constant_experts>>;

/// What an expert computes, named by it as `computation`. A backend has a step for each.
struct two_products {};  ///< down(activation(gate(x), up(x))) or down(activation(up(x)))

/// The type of `.experts`.
template <class Backend>
struct cached_experts {
  using type = absent<the_experts_are_in_memory>;
};
template <class Backend>
requires(expert_storage<Backend>::in_cache) struct cached_experts<Backend> {
  using type = typename expert_storage<Backend>::source;
};

/// The weights of a layer whose experts are feed-forward blocks, owned by the caller. They begin with the router's, whose type is the
/// router's.
template <class Layer>
struct feed_forward_weights {
  using policy = typename Layer::expert;
  using element = typename Layer::element;
  using in_operand = typename policy::template operand<element, projection::in>;
  using out_operand = typename policy::template operand<element, projection::out>;
  static_assert(
      activation_fits<policy>,
      "switchyard: the activation of this expert does not fit traits.gated. A gated expert needs static float "
      "apply(float gate, float up), another one static float apply(float x).");
  static_assert(switchyard::operand<in_operand> && switchyard::operand<out_operand>,
                "switchyard: the weights of this expert are no operand. An operand has element, in_place, granule, "
                "read, from and "
                "name_arrays; see core/operand.hpp.");
  static_assert(
      std::is_same_v<typename in_operand::element, element> && std::is_same_v<typename out_operand::element, element>,
      "switchyard: the operand of this expert is one of another element than the layer's. Give it the element that "
      "operand<Element, Role> names.");

  static constexpr bool in_cache = expert_storage<typename Layer::backend>::in_cache;
  static_assert(
      !in_cache || (fits_pieces<in_operand> && std::is_same_v<typename policy::computation, two_products>),
      "switchyard: backend::offloaded keeps the dense matrices of expert::mlp and expert::gated_mlp, and those of "
      "expert::stored_as in blocks (quantised::block_matrix). This expert has others: keep its weights in memory.");
  template <class Operand>
  using in_memory = std::conditional_t<in_cache, absent<the_experts_are_in_a_cache>, Operand>;

  /// [experts, hidden] float, and the biases that the router's traits ask for; with `router::stratified` for each stratum.
  [[no_unique_address]] typename own_router<Layer>::type router = {};
  /// With `backend::offloaded`, in the place of the projections and biases: `cache.layer(number)`.
  [[no_unique_address]] typename expert::cached_experts<typename Layer::backend>::type experts = {};
  [[no_unique_address]] std::conditional_t<policy::traits.gated, in_memory<in_operand>, absent<the_expert_is_not_gated>>
      gate_proj = {};                                           ///< [experts, intermediate, hidden]
  [[no_unique_address]] in_memory<in_operand> up_proj = {};     ///< [experts, intermediate, hidden]
  [[no_unique_address]] in_memory<out_operand> down_proj = {};  ///< [experts, hidden, intermediate]
  [[no_unique_address]] std::conditional_t<!policy::traits.bias, absent_biases,
                                           std::conditional_t<in_cache, cached_biases, expert_biases<element>>>
      bias = {};
  [[no_unique_address]] std::conditional_t<(policy::traits.shared_intermediate > 0), shared_expert_weights<element>,
                                           absent_shared_expert>
      shared = {};
  [[no_unique_address]] std::conditional_t<policy::traits.output_bias, element const*,
                                           absent<the_layer_has_no_output_bias>>
      output_bias = {};  ///< [hidden]
  [[no_unique_address]] std::conditional_t<policy::traits.ranking == unit_ranking::norm_compensated, float const*,
                                           absent<the_units_are_ranked_by_value>>
      unit_norms = {};  ///< [experts, intermediate], the L2 norms of the columns of down_proj: `switchyard::unit_norms`
  [[no_unique_address]] constant_experts_of<element, (policy::traits.nulls.vectors() > 0),
                                            (policy::traits.nulls.mixed_constant > 0)>
      constant_experts = {};
};

/// What makes views of a checkpoint's matrices: members of every layer of such experts.
template <shape Dims, class Expert, class Element>
struct feed_forward_views {
  /// Gate or up projections of all experts, back to back: [experts, intermediate, hidden]. One tensor that has both for each expert is
  /// no such thing, not even its halves: see `split_gate_up`.
  static constexpr weight_view<Element, projection::in> in_proj(Element const* first) {
    return weight_view<Element, projection::in>::packed(first, Dims.intermediate, Dims.hidden);
  }
  /// Down projections of all experts, back to back: [experts, hidden, intermediate].
  static constexpr weight_view<Element, projection::out> out_proj(Element const* first) {
    return weight_view<Element, projection::out>::packed(first, Dims.hidden, Dims.intermediate);
  }
  /// Gate and up projections of all experts in one tensor.
  static constexpr gate_up_views<Element> split_gate_up(Element const* first,
                                                        gate_up_order order = gate_up_order::concatenated,
                                                        storage stored = storage::output_major) {
    return switchyard::split_gate_up(first, Dims.intermediate, Dims.hidden, order, stored);
  }
  /// Gate or up biases of all experts, back to back: [experts, intermediate]; [intermediate] where experts share one.
  static constexpr bias_view<Element, projection::in> in_bias(Element const* first) {
    return bias_view<Element, projection::in>::packed(first, Expert::traits.one_bias ? 0 : Dims.intermediate);
  }
  /// Down biases of all experts, back to back: [experts, hidden]; [hidden] where experts share one.
  static constexpr bias_view<Element, projection::out> out_bias(Element const* first) {
    return bias_view<Element, projection::out>::packed(first, Expert::traits.one_bias ? 0 : Dims.hidden);
  }
  /// The shared expert's gate or up projection: [shared_intermediate, hidden].
  static constexpr weight_view<Element, projection::in> shared_in_proj(Element const* first) {
    return weight_view<Element, projection::in>::packed(first, Expert::traits.shared_intermediate, Dims.hidden);
  }
  /// The shared expert's down projection: [hidden, shared_intermediate].
  static constexpr weight_view<Element, projection::out> shared_out_proj(Element const* first) {
    return weight_view<Element, projection::out>::packed(first, Dims.hidden, Expert::traits.shared_intermediate);
  }
};

/// What an expert is that multiplies a row twice, with an activation between, unless it says otherwise. An expert inherits this, has a
/// name, traits where some are on, and an `activation` that fits `traits.gated`. One whose weights are no dense matrices has an
/// `operand` of its own.
struct feed_forward {
  static constexpr expert_traits traits{};
  using computation = two_products;
  /// What stands in gate_proj and up_proj (`projection::in`) and in down_proj (`projection::out`).
  template <class Element, projection Role>
  using operand = weight_view<Element, Role>;
  template <class Layer>
  using weights = feed_forward_weights<Layer>;
  template <shape Dims, class Expert, class Element>
  using views = feed_forward_views<Dims, Expert, Element>;

  /// Throws `error` when a matrix or a bias is missing.
  template <class Layer>
  static void check(feed_forward_weights<Layer> const& w) {
    constexpr expert_traits t = Layer::expert_traits;
    constexpr int experts = Layer::dims.experts, hidden = Layer::dims.hidden, inner = Layer::dims.intermediate;
    constexpr char const *in_shape = "[experts, intermediate, hidden]", *out_shape = "[experts, hidden, intermediate]";
    constexpr bool in_cache = feed_forward_weights<Layer>::in_cache;
    if constexpr (in_cache) {
      w.experts.template check<Layer>();
    } else {
      if constexpr (t.gated) {
        w.gate_proj.name_arrays(checks::check_arrays{{"weights.gate_proj"}, in_shape}, experts, inner, hidden);
      }
      w.up_proj.name_arrays(checks::check_arrays{{"weights.up_proj"}, in_shape}, experts, inner, hidden);
      w.down_proj.name_arrays(checks::check_arrays{{"weights.down_proj"}, out_shape}, experts, hidden, inner);
    }
    if constexpr (!in_cache && t.gated && experts > 1) {
      if constexpr (requires { w.gate_proj.expert_stride; }) {
        check_halves(w.gate_proj, w.up_proj, std::int64_t{inner} * hidden);
      }
    }
    if constexpr (in_cache) {
      // Biases stand in the pieces.
    } else if constexpr (t.bias && t.one_bias) {
      if constexpr (t.gated) checks::check_one_bias(w.bias.gate, "weights.bias.gate", "[intermediate]", inner);
      checks::check_one_bias(w.bias.up, "weights.bias.up", "[intermediate]", inner);
      checks::check_one_bias(w.bias.down, "weights.bias.down", "[hidden]", hidden);
    } else if constexpr (t.bias) {
      if constexpr (t.gated) {
        checks::check_bias(w.bias.gate, "weights.bias.gate", "[experts, intermediate]", experts, inner);
      }
      checks::check_bias(w.bias.up, "weights.bias.up", "[experts, intermediate]", experts, inner);
      checks::check_bias(w.bias.down, "weights.bias.down", "[experts, hidden]", experts, hidden);
    }
    if constexpr (t.ranking == unit_ranking::norm_compensated) {
      checks::check_pointer(w.unit_norms, "weights.unit_norms",
                            "[experts, intermediate] float (unit_norms makes them)");
    }
    check_common<Layer>(w);
  }

  /// The same of what every token meets, whichever experts it visits.
  template <class Layer>
  static void check_common(feed_forward_weights<Layer> const& w) {
    constexpr expert_traits t = Layer::expert_traits;
    constexpr int hidden = Layer::dims.hidden;
    if constexpr (t.shared_intermediate > 0) {
      constexpr int shared = t.shared_intermediate;
      constexpr char const* shared_shape = "[shared intermediate, hidden]";
      if constexpr (t.gated) {
        w.shared.gate_proj.name_arrays(checks::check_arrays{{"weights.shared.gate_proj"}, shared_shape}, 1, shared,
                                       hidden);
      }
      w.shared.up_proj.name_arrays(checks::check_arrays{{"weights.shared.up_proj"}, shared_shape}, 1, shared, hidden);
      w.shared.down_proj.name_arrays(
          checks::check_arrays{{"weights.shared.down_proj"}, "[hidden, shared intermediate]"}, 1, hidden, shared);
      if constexpr (t.gate == shared_gate::sigmoid) {
        checks::check_pointer(w.shared.gate, "weights.shared.gate", "[hidden]");
      }
    }
    if constexpr (t.output_bias) checks::check_pointer(w.output_bias, "weights.output_bias", "[hidden]");
    if constexpr (t.nulls.vectors() > 0) {
      checks::check_pointer(w.constant_experts.vectors, "weights.constant_experts.vectors",
                            "[constant experts, hidden]");
    }
    if constexpr (t.nulls.mixed_constant > 0) {
      checks::check_pointer(w.constant_experts.mixing, "weights.constant_experts.mixing",
                            "[constant experts that mix, 2, hidden]");
    }
  }

  /// Names all that a call reads of the experts.
  template <class Layer>
  static void list_read(feed_forward_weights<Layer> const& w, checks::written_memory const& memory) {
    constexpr expert_traits t = Layer::expert_traits;
    constexpr int experts = Layer::dims.experts, hidden = Layer::dims.hidden, inner = Layer::dims.intermediate;
    auto const list = [&](char const* name) { return checks::list_arrays{name, memory}; };
    constexpr bool in_cache = feed_forward_weights<Layer>::in_cache;
    if constexpr (!in_cache) {
      if constexpr (t.gated) w.gate_proj.name_arrays(list("weights.gate_proj"), experts, inner, hidden);
      w.up_proj.name_arrays(list("weights.up_proj"), experts, inner, hidden);
      w.down_proj.name_arrays(list("weights.down_proj"), experts, hidden, inner);
    }
    if constexpr (t.bias && !in_cache) {
      constexpr int biases = t.one_bias ? 1 : experts;
      if constexpr (t.gated) memory.read("weights.bias.gate", w.bias.gate, biases, inner);
      memory.read("weights.bias.up", w.bias.up, biases, inner);
      memory.read("weights.bias.down", w.bias.down, biases, hidden);
    }
    if constexpr (t.shared_intermediate > 0) {
      constexpr int shared = t.shared_intermediate;
      if constexpr (t.gated) w.shared.gate_proj.name_arrays(list("weights.shared.gate_proj"), 1, shared, hidden);
      w.shared.up_proj.name_arrays(list("weights.shared.up_proj"), 1, shared, hidden);
      w.shared.down_proj.name_arrays(list("weights.shared.down_proj"), 1, hidden, shared);
      if constexpr (t.gate == shared_gate::sigmoid) memory.read("weights.shared.gate", w.shared.gate, hidden);
    }
    if constexpr (t.output_bias) memory.read("weights.output_bias", w.output_bias, hidden);
    if constexpr (t.ranking == unit_ranking::norm_compensated) {
      memory.read("weights.unit_norms", w.unit_norms, std::int64_t{experts} * inner);
    }
    if constexpr (t.nulls.vectors() > 0) {
      memory.read("weights.constant_experts.vectors", w.constant_experts.vectors,
                  std::int64_t{t.nulls.vectors()} * hidden);
    }
    if constexpr (t.nulls.mixed_constant > 0) {
      memory.read("weights.constant_experts.mixing", w.constant_experts.mixing,
                  std::int64_t{2} * t.nulls.mixed_constant * hidden);
    }
  }

  /// The weights of the experts from `first` on, without a router's: what a layer of those experts takes.
  template <class To, class From>
  static feed_forward_weights<To> from(feed_forward_weights<From> const& w, int first) {
    constexpr expert_traits t = From::expert_traits;
    feed_forward_weights<To> result{};
    constexpr bool in_cache = feed_forward_weights<From>::in_cache;
    if constexpr (in_cache) {
      result.experts = w.experts.from(first);
    } else {
      if constexpr (t.gated) result.gate_proj = w.gate_proj.from(first);
      result.up_proj = w.up_proj.from(first);
      result.down_proj = w.down_proj.from(first);
    }
    if constexpr (t.bias && !in_cache) {
      if constexpr (t.gated) result.bias.gate = w.bias.gate.from(first);
      result.bias.up = w.bias.up.from(first);
      result.bias.down = w.bias.down.from(first);
    }
    if constexpr (t.ranking == unit_ranking::norm_compensated) {
      result.unit_norms = w.unit_norms + std::int64_t{first} * From::dims.intermediate;
    }
    return result;
  }

  template <class Layer>
  static constexpr expert_costs costs() {
    constexpr expert_traits t = Layer::expert_traits;
    constexpr std::int64_t hidden = Layer::dims.hidden, inner = Layer::dims.intermediate, in = t.input_projections();
    expert_costs result;
    result.matrices = (in + 1) * hidden * inner;
    result.vectors = t.bias ? in * inner + hidden : 0;
    result.shared = (in + 1) * hidden * t.shared_intermediate + (t.gate == shared_gate::sigmoid ? hidden : 0);
    result.output = t.output_bias ? hidden : 0;
    result.nulls = (t.nulls.vectors() + 2 * t.nulls.mixed_constant) * hidden;
    return result;
  }

 private:
  /// Halves of one tensor with gate and up side by side for each expert, taken for two tensors: the second expert's gate would be the
  /// first one's up.
  template <class View>
  static void check_halves(View const& gate, View const& up, std::int64_t matrix) {
    if (gate.expert_stride != matrix || up.expert_stride != matrix || up.data != gate.data + matrix) return;
    fail("layer::forward, weights.up_proj",
         "a tensor apart from gate_proj (layer::split_gate_up makes both views of one that has them side by side)",
         "the matrix of gate_proj's second expert");
  }
};

}  // namespace expert
}  // namespace switchyard
