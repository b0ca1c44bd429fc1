#pragma once

#include <switchyard/core/absent.hpp>
#include <switchyard/core/checks.hpp>
#include <switchyard/core/text.hpp>
#include <switchyard/core/view.hpp>
#include <switchyard/core/with.hpp>
#include <switchyard/expert/expert_policy.hpp>
#include <switchyard/router/router_policy.hpp>

#include <cstdint>
#include <string_view>
#include <type_traits>

namespace switchyard {

template <class Layer>
struct own_router;

namespace expert {

/// Experts that are rows: a layer of them sums rows, and plans nothing. Named as `computation` and as `schedule`.
struct sum_of_rows {};

struct the_experts_have_no_output_gate {
  template <class T>
  static constexpr void refuse() {
    static_assert(
        sizeof(T) == 0,
        "switchyard: nothing gates the output of these experts. Wrap the expert in expert::with_output_gate, or leave "
        ".output_gate and .output_gate_bias out.");
  }
};

struct the_experts_have_no_gated_projection {
  template <class T>
  static constexpr void refuse() {
    static_assert(sizeof(T) == 0,
                  "switchyard: nothing projects the output of these experts. Wrap the expert in "
                  "expert::with_gated_projection, or leave .projection, .projection_gate and their biases out.");
  }
};

template <class Expert, class T>
using of_output_gate = std::conditional_t<Expert::has_output_gate, T, absent<the_experts_have_no_output_gate>>;
template <class Expert, class T>
using of_gated_projection =
    std::conditional_t<Expert::has_gated_projection, T, absent<the_experts_have_no_gated_projection>>;

template <class Layer>
struct value_weights {
  using element = typename Layer::element;
  using projected = of_gated_projection<typename Layer::expert, element const*>;
  typename own_router<Layer>::type router = {};
  view<element const> values = {};                                                                ///< [experts, hidden]
  [[no_unique_address]] of_output_gate<typename Layer::expert, element const*> output_gate = {};  ///< [hidden]
  [[no_unique_address]] of_output_gate<typename Layer::expert, element const*> output_gate_bias =
      {};                                                     ///< one number, null: none
  [[no_unique_address]] projected projection_gate = {};       ///< [hidden, hidden]
  [[no_unique_address]] projected projection_gate_bias = {};  ///< [hidden], null: none
  [[no_unique_address]] projected projection = {};            ///< [hidden, hidden]
  [[no_unique_address]] projected projection_bias = {};       ///< [hidden], null: none
};

template <class Layer>
struct neuron_weights {
  using element = typename Layer::element;
  using projected = of_gated_projection<typename Layer::expert, element const*>;
  typename own_router<Layer>::type router = {};
  view<element const> up = {};                                                                    ///< [experts, hidden]
  view<element const> down = {};                                                                  ///< [experts, hidden]
  [[no_unique_address]] of_output_gate<typename Layer::expert, element const*> output_gate = {};  ///< [hidden]
  [[no_unique_address]] of_output_gate<typename Layer::expert, element const*> output_gate_bias =
      {};                                                     ///< one number, null: none
  [[no_unique_address]] projected projection_gate = {};       ///< [hidden, hidden]
  [[no_unique_address]] projected projection_gate_bias = {};  ///< [hidden], null: none
  [[no_unique_address]] projected projection = {};            ///< [hidden, hidden]
  [[no_unique_address]] projected projection_bias = {};       ///< [hidden], null: none
};

/// What makes views of tables: a member of every layer of such experts.
template <shape Dims, class Element>
struct row_views {
  /// A row of each expert, back to back: [experts, hidden].
  static constexpr view<Element const> table(Element const* first) { return {first, Dims.experts, Dims.hidden}; }
};

/// What an expert is that is a row or two of tables, unless it says otherwise.
struct rows_of_tables {
  static constexpr expert_traits traits{};
  static constexpr bool has_output_gate = false, has_gated_projection = false;
  using computation = sum_of_rows;
  using schedule = sum_of_rows;
  template <shape Dims, class Expert, class Element>
  using views = row_views<Dims, Element>;

  /// Throws `error` when a table is missing.
  template <class Layer>
  static void check(typename Layer::weights const& w) {
    static_assert(Layer::dims.intermediate == 1,
                  "switchyard: an expert that is a row has an inner width of 1. Set shape.intermediate to 1.");
    static_assert(std::is_same_v<typename Layer::router::schedule, router::one_pass>,
                  "switchyard: router::stratified makes several passes over blocks of feed-forward experts. Experts "
                  "that are rows take "
                  "another router.");
    static_assert(
        !makes_logits<typename Layer::router>,
        "switchyard: a router that chooses by logits makes one for every row of the table. Experts that are rows take "
        "router::product_keys, or a router that is handed its experts, such as router::precomputed.");
    static_assert(!Layer::router_traits.weighs_input,
                  "switchyard: router::on_input multiplies the token before a feed-forward expert. Experts that are "
                  "rows are weighted "
                  "themselves: take the wrapper away.");
    static_assert(
        !Layer::capacity_traits.drops && !Layer::capacity_traits.renormalises,
        "switchyard: a row serves any number of tokens, so experts that are rows have no capacity to run out of. Use "
        "capacity::dropless.");
    Layer::expert::for_each_table(w, [](auto const& table, char const* name) {
      checks::check_matrix(table, name, Layer::dims.experts, Layer::dims.hidden, "experts x hidden");
    });
    if constexpr (Layer::expert::has_output_gate) {
      checks::check_pointer(w.output_gate, "weights.output_gate", "[hidden]");
    }
    if constexpr (Layer::expert::has_gated_projection) {
      checks::check_pointer(w.projection_gate, "weights.projection_gate", "[hidden, hidden]");
      checks::check_pointer(w.projection, "weights.projection", "[hidden, hidden]");
    }
  }

  /// Names all that a call reads of the experts.
  template <class Layer>
  static void list_read(typename Layer::weights const& w, checks::written_memory const& memory) {
    Layer::expert::for_each_table(w, [&](auto const& table, char const* name) { memory.read(name, table, {}); });
    if constexpr (Layer::expert::has_output_gate) {
      memory.read("weights.output_gate", w.output_gate, Layer::dims.hidden);
      memory.read("weights.output_gate_bias", w.output_gate_bias, 1);
    }
    if constexpr (Layer::expert::has_gated_projection) {
      constexpr std::int64_t hidden = Layer::dims.hidden;
      memory.read("weights.projection_gate", w.projection_gate, hidden * hidden);
      memory.read("weights.projection_gate_bias", w.projection_gate_bias, hidden);
      memory.read("weights.projection", w.projection, hidden * hidden);
      memory.read("weights.projection_bias", w.projection_bias, hidden);
    }
  }

  template <class Layer>
  static constexpr expert_costs costs() {
    expert_costs result;
    constexpr std::int64_t hidden = Layer::dims.hidden;
    result.matrices = Layer::expert::tables_per_expert * hidden;
    result.shared = Layer::expert::has_gated_projection ? 2 * hidden * hidden : 0;
    result.output =
        (Layer::expert::has_output_gate ? hidden + 1 : 0) + (Layer::expert::has_gated_projection ? 2 * hidden : 0);
    return result;
  }
};

/// An expert that is a row: the output is the weighted sum of the rows of a token's experts (product-key memory, embedding bag).
/// Source: Lample et al. 2019, Large Memory Layers with Product Keys, section 3.1.
struct value_row : rows_of_tables {
  static constexpr std::string_view name = "value_row";
  static constexpr int tables_per_expert = 1;

  template <class Layer>
  using weights = value_weights<Layer>;
  template <class Weights, class Body>
  static void for_each_table(Weights const& w, Body const& body) {
    body(w.values, "weights.values");
  }
};

/// An expert with one hidden unit: weight * activation(up . token) * down (PEER).
/// Source: He 2024, Mixture of A Million Experts, section 2.1.
template <class Activation>
struct neuron : rows_of_tables {
  static_assert(switchyard::activation<Activation>,
                "switchyard: expert::neuron needs an activation of one value: a struct with a name and static float "
                "apply(float x).");
  using activation = Activation;
  static constexpr auto label = "neuron<" + name_of<Activation>() + ">";
  static constexpr std::string_view name = label;
  static constexpr int tables_per_expert = 2;

  template <class Layer>
  using weights = neuron_weights<Layer>;
  template <class Weights, class Body>
  static void for_each_table(Weights const& w, Body const& body) {
    body(w.up, "weights.up");
    body(w.down, "weights.down");
  }
};

/// The sum over a token's rows is multiplied by silu(G token + b), feature by feature, and the result is projected: P (..) + c. G and P
/// are matrices [hidden, hidden], row-major. `with_output_gate` comes last.
///
///   expert::with_output_gate<expert::with_gated_projection<expert::value_row>>
///
/// Source: Berges et al. 2024, Memory Layers at Scale, its published code (swilu_projection).
template <class Base>
struct with_gated_projection : Base {
  static_assert(std::is_same_v<typename Base::computation, sum_of_rows>,
                "switchyard: expert::with_gated_projection is for experts that are rows: value_row and neuron.");
  static_assert(!Base::has_gated_projection, "switchyard: expert::with_gated_projection stands twice.");
  static_assert(!Base::has_output_gate,
                "switchyard: the output gate multiplies what the projection makes. Write "
                "expert::with_output_gate<expert::with_gated_projection<...>>.");
  static constexpr auto label = "with_gated_projection<" + name_of<Base>() + ">";
  static constexpr std::string_view name = label;
  static constexpr bool has_gated_projection = true;
};

/// The sum over a token's rows, or what a projection makes of it, is multiplied by sigmoid(token . gate + bias), one number per token.
/// Source: Berges et al. 2024, Memory Layers at Scale, its published code (mem_gated).
template <class Base>
struct with_output_gate : Base {
  static_assert(std::is_same_v<typename Base::computation, sum_of_rows>,
                "switchyard: expert::with_output_gate is for experts that are rows: value_row and neuron.");
  static_assert(!Base::has_output_gate, "switchyard: expert::with_output_gate stands twice.");
  static constexpr auto label = "with_output_gate<" + name_of<Base>() + ">";
  static constexpr std::string_view name = label;
  static constexpr bool has_output_gate = true;
};

static_assert(expert_policy<value_row>);
static_assert(expert_policy<neuron<relu>>);

}  // namespace expert
}  // namespace switchyard
