#pragma once

#include <switchyard/core/host_device.hpp>
#include <switchyard/core/text.hpp>
#include <switchyard/core/view.hpp>
#include <switchyard/core/with.hpp>
#include <switchyard/router/by_logits.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

namespace switchyard {

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

}  // namespace switchyard

namespace switchyard::router {

/// How tokens go from one stratum to the next.
struct stratum_form {
  bool norms = true;                ///< a layer norm between passes and after the last
  bool normalised_residual = true;  ///< a pass adds the token after that norm; false: before it
};

/// The schedule of `stratified`: a pass for each stratum that a token visits. `Experts` are the sizes of the strata, lowest first.
template <stratum_form Form, int... Experts>
struct climbing {
  static constexpr int strata = sizeof...(Experts), passes = strata;
  static constexpr stratum_form form = Form;
  template <stratum_form Other>
  using formed = climbing<Other, Experts...>;

  /// The lowest expert that the router of a stratum may choose; of the number of strata: all experts.
  SWITCHYARD_HD static constexpr int first_expert(int stratum) {
    int first = 0, below = 0;
    ((first += below < stratum ? Experts : 0, ++below), ...);
    return first;
  }
  /// The stratum that owns an expert.
  SWITCHYARD_HD static constexpr int stratum_of(int expert) {
    int stratum = 0, end = 0;
    ((end += Experts, stratum += expert >= end ? 1 : 0), ...);
    return stratum;
  }
  /// The stratum that a token with this first choice is in after a pass: the number of strata when it has left the last.
  SWITCHYARD_HD static constexpr int next_stratum(int first_choice) { return 1 + stratum_of(first_choice); }
};

template <class Schedule>
inline constexpr bool climbs = false;
template <stratum_form Form, int... Experts>
inline constexpr bool climbs<climbing<Form, Experts...>> = true;

struct each_stratum_has_a_router {
  template <class T>
  static constexpr void refuse() {
    static_assert(
        sizeof(T) == 0,
        "switchyard: router::stratified has a router weight for each stratum. Set .stratum[0], .stratum[1], ... "
        "instead of .weight.");
  }
};
struct each_stratum_has_logits {
  template <class T>
  static constexpr void refuse() {
    static_assert(sizeof(T) == 0,
                  "switchyard: router::stratified makes logits anew in each stratum, and does not report them.");
  }
};
struct the_strata_have_no_norms {
  template <class T>
  static constexpr void refuse() {
    static_assert(
        sizeof(T) == 0,
        "switchyard: router::without_stratum_norms takes the norms away. Leave .norm out, or take the wrapper away.");
  }
};

/// The routers of the strata. The matrix of stratum i is [experts, hidden] without the experts of lower strata, and so are its biases.
template <int Strata, class Weights>
struct stratum_weights {
  Weights stratum[Strata] = {};
  [[no_unique_address]] absent<each_stratum_has_a_router> weight = {};
  [[no_unique_address]] absent<each_stratum_has_a_router> bias = {};
  [[no_unique_address]] absent<each_stratum_has_a_router> correction_bias = {};
};

/// What a block hands to its stratified layer, as `.inputs`.
template <class Layer>
struct block_inputs {
  /// [tokens, hidden]: what the block adds to its first pass, the tokens before the block's norm.
  view<typename Layer::element const> residual = {};
  [[no_unique_address]] std::conditional_t<Layer::router::schedule::form.norms,
                                           stratum_norms<Layer::router::schedule::strata>,
                                           absent<the_strata_have_no_norms>>
      norm = {};
};

/// `report` of `stratified`.
struct strata_report {
  [[no_unique_address]] absent<each_stratum_has_logits> logits = {};
  [[no_unique_address]] absent<the_router_has_no_clusters> feature_scale = {};
  [[no_unique_address]] absent<the_router_has_no_clusters> dispersion = {};
  std::uint8_t* passes = nullptr;  ///< [tokens] passes that each token made, 0 for padding
};

/// The experts of the layer stand in strata, one above the other, and a token climbs through them: a pass in stratum i
/// takes `Base` with a gate of its own over the experts of that stratum and all higher ones, and the token goes on in the
/// stratum above the one that owns its first choice, whether that choice was dropped or not. Above the last it is done.
///
/// A pass makes h = experts(h) + residual for the tokens at hand, then h = layer norm of the stratum just left (h). The
/// first pass has `tokens` (after the block's norm) and `residual` (before it); later ones have h for both. So the layer's
/// output is the block's: nothing is to be added or normalised after it. Capacity is that of each pass, of its experts and
/// the tokens in it; a token that is dropped climbs all the same. `Experts` are the sizes of the strata, lowest first.
/// Source: Xu et al. 2023, Towards Being Parameter-Efficient: A Stratified Sparsely Activated Transformer with Dynamic
/// Capacity, section 3, with what its published code does about residuals and norms.
template <class Base, int... Experts>
struct stratified : Base {
  static_assert(sizeof...(Experts) >= 1 && sizeof...(Experts) <= 255 && ((Experts >= 1) && ...),
                "switchyard: router::stratified takes the sizes of its strata, each of at least 1 expert, for 1 to 255 "
                "strata: stratified<softmax_top_k, 4, 4>.");
  static_assert(
      makes_logits<Base>,
      "switchyard: a router without logits, such as router::precomputed, has the routes of one pass, and "
      "router::stratified decides after each pass which tokens make another. Wrap a router that makes logits.");
  static_assert(
      !makes_logits<Base> || std::is_same_v<typename Base::source, from_logits>,
      "switchyard: router::stratified around router::s_base: no publication says which tokens of which passes "
      "balance the experts of a stratum. Take one of the two.");
  static_assert(
      !Base::traits.takes_inputs,
      "switchyard: router::stratified takes .inputs, and the router that it wraps "
      "(router::replayed, router::restricted, router::with_router_input or router::with_expert_dropout) takes "
      "them, too. Take one of the two.");
  static_assert(
      std::is_same_v<typename Base::features, features_as_they_are>,
      "switchyard: router::stratified around router::adaptive_clustering: the clusters of a token are those of "
      "one router, and a stratified layer has several. Take one of the two.");
  static_assert(std::is_same_v<typename Base::schedule, one_pass>,
                "switchyard: router::stratified inside another one. Give all sizes to one.");
  static constexpr auto label = "stratified<" + name_of<Base>() + (... + ("," + decimal<Experts>())) + ">";
  static constexpr std::string_view name = label;

  using base = Base;
  using schedule = climbing<stratum_form{}, Experts...>;
  template <class Layer>
  using weights = stratum_weights<sizeof...(Experts), typename Base::template weights<Layer>>;
  template <class Layer>
  using inputs = block_inputs<Layer>;
  template <class Layer>
  using report = strata_report;

  template <class Self, shape Dims, class Capacity, class Expert>
  static constexpr bool fits() {
    static_assert(
        Expert::traits.nulls.count() == 0,
        "switchyard: router::stratified lets a token climb by its first choice, and no publication says in which "
        "stratum an expert stands that computes nothing. Take expert::with_null_experts away.");
    static_assert(
        (0 + ... + Experts) == Dims.experts,
        "switchyard: the strata of router::stratified have together not as many experts as the layer. Make their "
        "sizes add up to shape.experts.");
    static_assert(
        !Capacity::traits.counts_padding,
        "switchyard: capacity::counting_padding in a layer of router::stratified: a pass has no padding that it could "
        "count. Take the wrapper away.");
    static_assert(Expert::traits.shared_intermediate == 0,
                  "switchyard: router::stratified makes several passes, and no publication says which of them a shared "
                  "expert sees. Take expert::with_shared away, and compute it beside the layer.");
    static_assert(
        !Expert::traits.output_bias,
        "switchyard: router::stratified makes several passes, and no publication says which of them an output bias "
        "belongs to. Take expert::with_output_bias away, and add it beside the layer.");
    return Base::template fits<Self, Dims, Capacity, Expert>();
  }

  template <class Layer>
  static void check(forward_args<Layer> const& args) {
    using router = typename Layer::router;
    constexpr bool of_model = router::traits.owner == router_owner::model;
    checks::check_matrix(args.inputs.residual, "inputs.residual", args.tokens.rows, Layer::dims.hidden);
    for (int i = 0; i < router::schedule::strata; ++i) {
      Base::template check_weights<router>(weights_of(args).stratum[i],
                                           {of_model ? "shared_router.stratum" : "weights.router.stratum", i});
      if constexpr (router::schedule::form.norms) check_norm(args.inputs.norm.after[i], {"inputs.norm.after", i});
    }
    if (args.tokens_per_group != 0) {
      fail("layer::forward, tokens_per_group", "0, for each pass of router::stratified is one group",
           std::to_string(args.tokens_per_group));
    }
  }

  template <class Layer>
  static void list_written(forward_args<Layer> const& args, checks::written_memory& memory) {
    memory.write("report.passes", args.report.passes, args.tokens.rows);
    memory.write("auxiliary", args.auxiliary, 1);
  }
  template <class Layer>
  static void list_read(forward_args<Layer> const& args, checks::written_memory const& memory) {
    using router = typename Layer::router;
    for (int i = 0; i < router::schedule::strata; ++i) {
      Base::template list_weights<router>(weights_of(args).stratum[i],
                                          Layer::dims.experts - router::schedule::first_expert(i), Layer::dims.hidden,
                                          memory);
      if constexpr (router::schedule::form.norms) {
        memory.read("inputs.norm", args.inputs.norm.after[i].weight, Layer::dims.hidden);
        memory.read("inputs.norm", args.inputs.norm.after[i].bias, Layer::dims.hidden);
      }
    }
    if (args.tokens.rows == 0) return;
    checks::check_output(args.output, args.inputs.residual, "inputs.residual");
    memory.read("inputs.residual", args.inputs.residual, "output");
  }

  /// One pass, all experts open; what the owner stores are the routers of all strata.
  template <class Layer>
  static constexpr router_costs costs() {
    router_costs result = Base::template costs<Layer>();
    std::int64_t const per_expert = result.all / Layer::dims.experts;
    for (int i = 1; i < Layer::router::schedule::strata; ++i) {
      result.all += per_expert * (Layer::dims.experts - Layer::router::schedule::first_expert(i));
    }
    if (Layer::router::schedule::form.norms) {
      result.layers = std::int64_t{2} * Layer::router::schedule::strata * Layer::dims.hidden;
    }
    return result;
  }

 private:
  static void check_norm(layer_norm const& norm, checks::owner const& of) {
    checks::check_pointer(norm.weight, "weight", "[hidden] float", of);
    checks::check_pointer(norm.bias, "bias", "[hidden] float", of);
    if (!(norm.epsilon >= 0.0f)) {
      fail(std::string("layer::forward, ").append(of.text()).append("epsilon"), "0 or more",
           std::to_string(norm.epsilon));
    }
  }
};

/// A pass of `Base` adds the token before the last pass's norm, as in a block of several layers. The published code
/// normalises in place, so that its residual is the normalised token too.
template <class Base>
struct with_separate_residual : Base {
  static_assert(climbs<typename Base::schedule>,
                "switchyard: router::with_separate_residual changes a router::stratified, and this router is none.");
  static constexpr auto label = "with_separate_residual<" + name_of<Base>() + ">";
  static constexpr std::string_view name = label;
  using schedule =
      typename Base::schedule::template formed<with(Base::schedule::form, &stratum_form::normalised_residual, false)>;
};

/// Without the layer norms of `Base`'s strata: a pass's result goes to the next one as it is.
template <class Base>
struct without_stratum_norms : Base {
  static_assert(climbs<typename Base::schedule>,
                "switchyard: router::without_stratum_norms changes a router::stratified, and this router is none.");
  static constexpr auto label = "without_stratum_norms<" + name_of<Base>() + ">";
  static constexpr std::string_view name = label;
  using schedule = typename Base::schedule::template formed<with(Base::schedule::form, &stratum_form::norms, false)>;
};

/// A stratified router in one of its passes: an ordinary one, with what wraps the strata.
template <class Stratified>
struct pass_of : Stratified {
  using schedule = one_pass;
  template <class Layer>
  using weights = typename Stratified::base::template weights<Layer>;
  template <class Layer>
  using inputs = typename Stratified::base::template inputs<Layer>;
  template <class Layer>
  using report = typename Stratified::base::template report<Layer>;
  template <class Self, shape Dims, class Capacity, class Expert>
  static constexpr bool fits() {
    return Stratified::base::template fits<Self, Dims, Capacity, Expert>();
  }
};

}  // namespace switchyard::router
