#pragma once

#include <switchyard/core/text.hpp>
#include <switchyard/core/with.hpp>
#include <switchyard/router/by_inputs.hpp>

#include <cstdint>
#include <string_view>

namespace switchyard {

/// How `router::predicted` makes weights and outputs of predictions. The published code does both of these.
struct prediction_traits {
  /// A weight is the predicted probability times 0.5 for the first choice, 0.25 for the second and the third; of more than three, each
  /// after the first has an equal share of 0.5.
  bool degrades = false;
  /// An element of the sum over a token's experts that is exactly zero becomes that of the token.
  bool replaces_zeros = false;
};

/// Predictions for `router::predicted`: the rows of a layer in a `sida::hash_table`, or of any other predictor. Ids are those of
/// `precomputed_routes`: -1 is no expert of this layer, though its probability counts.
struct predicted_experts {
  std::int32_t const* experts = nullptr;  ///< [tokens, top_k], ids from 0 to experts - 1, or -1; the best first
  float const* probabilities = nullptr;   ///< [tokens, top_k], of a softmax over all experts
};

namespace router {

/// The form of SiDA's published code.
inline constexpr prediction_traits published_prediction{.degrades = true, .replaces_zeros = true};

namespace detail {

template <prediction_traits Form>
constexpr auto prediction_label() {
  if constexpr (Form.degrades && Form.replaces_zeros) {
    return text("predicted<published>");
  } else if constexpr (Form.degrades) {
    return text("predicted<degraded>");
  } else if constexpr (Form.replaces_zeros) {
    return text("predicted<zeros_replaced>");
  } else {
    return text("predicted");
  }
}

}  // namespace detail

/// No router of the model: the experts are predicted ones, and so are the weights. `.inputs = {.experts = ids, .probabilities = p}`, as
/// `sida::hash_table::routes` gives them. A wrong prediction is a wrong expert: to fetch experts early and leave results as they are, use
/// predictions with `expert_cache::expect` and the model's own router.
///
/// The weights of a token's experts are its predicted probabilities, divided by their sum and times the first one's: their sum is what the
/// best expert alone would have. One expert has its probability, as in Switch. Other forms: see `prediction_traits`.
/// Source: Du et al. 2024, SiDA-MoE: Sparsity-Inspired Data-Aware Serving, with its code (`published_prediction`), whose list of
/// factors ends after the third choice. Its weights on the path that is timed are random numbers, and are not here.
template <prediction_traits Form = prediction_traits{}>
struct predicted : by_inputs {
  static constexpr auto label = detail::prediction_label<Form>();
  static constexpr std::string_view name = label;
  static constexpr prediction_traits form = Form;
  static constexpr router_traits traits = with(by_inputs::traits, &router_traits::replaces_zeros, Form.replaces_zeros);
  static constexpr char const *experts_name = "inputs.experts", *weights_name = "inputs.probabilities";

  template <class Layer>
  using inputs = predicted_experts;

  SWITCHYARD_HD static routed_pair pair(predicted_experts const& from, std::int64_t token, int top_k, int choice) {
    std::int64_t const first = token * top_k;
    float const probability = from.probabilities[first + choice];
    std::int32_t const expert = from.experts[first + choice];
    if constexpr (Form.degrades) {
      return {expert, probability * degrading_factor(top_k, choice)};
    } else {
      if (top_k == 1) return {expert, probability};
      float total = 0.0f;
      for (int k = 0; k < top_k; ++k) total += from.probabilities[first + k];
      return {expert, total == 0.0f ? 0.0f : probability / total * from.probabilities[first]};
    }
  }

  /// What the published form multiplies a probability by.
  SWITCHYARD_HD static constexpr float degrading_factor(int top_k, int choice) {
    if (choice == 0) return 0.5f;
    return top_k <= 3 ? 0.25f : 0.5f / static_cast<float>(top_k - 1);
  }

  template <class Self, shape Dims, class Capacity, class Expert>
  static constexpr bool fits() {
    static_assert(
        !Form.replaces_zeros || (Expert::traits.shared_intermediate == 0 && !Expert::traits.output_bias &&
                                 Expert::traits.nulls.count() == 0 && !requires { typename Expert::schedule; }),
        "switchyard: router::predicted<router::published_prediction> replaces zeros of the sum over a token's experts, "
        "and knows feed-forward experts alone: no shared expert, no output bias, no null experts and no rows of "
        "tables. "
        "Use router::predicted<>, or expert::mlp or gated_mlp.");
    static_assert(!Form.replaces_zeros || !Capacity::traits.drops,
                  "switchyard: router::predicted<router::published_prediction> has no capacity: what it puts in the "
                  "place of zeros "
                  "would stand for dropped pairs, too. Use capacity::dropless, or router::predicted<>.");
    return true;
  }
  template <class Layer>
  static void check(forward_args<Layer> const& args) {
    if (args.tokens.rows == 0) return;
    checks::check_pointer(args.inputs.experts, "inputs.experts", "[tokens, top_k] int32");
    checks::check_pointer(args.inputs.probabilities, "inputs.probabilities", "[tokens, top_k] float");
  }
  template <class Layer>
  static void list_read(forward_args<Layer> const& args, checks::written_memory const& memory) {
    std::int64_t const pairs = args.tokens.rows * Layer::dims.top_k;
    memory.read("inputs.experts", args.inputs.experts, pairs, "decisions.experts");
    memory.read("inputs.probabilities", args.inputs.probabilities, pairs);
  }
};

static_assert(router_policy<predicted<>> && router_policy<predicted<published_prediction>>);

}  // namespace router
}  // namespace switchyard
