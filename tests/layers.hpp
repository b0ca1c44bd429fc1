#pragma once

#include <switchyard/switchyard.hpp>

#include <tuple>
#include <utility>

/// The layers that the tests of whole layers run, one line each. A new policy adds a line to a list: to one that runs everywhere,
/// with policies and sizes that stand there beside it already, for on a GPU a line costs seconds. The lists of more layers are
/// those of the CPU without sanitizers: other combinations and sizes of policies that the first ones have (a test looks).
///
/// Sizes are small and awkward: no multiple of a vector, a tile or a block, unless a line says otherwise.
namespace tested {

using namespace switchyard;
using namespace switchyard::router;
using namespace switchyard::capacity;
using namespace switchyard::expert;
using selection::group_score;
using switchyard::half;  // CUDA has one too

template <int Groups, int KeptGroups, group_score Judge>
using grouped_corrected = selection::grouped<Groups, KeptGroups, Judge, selection::corrected>;

template <int Experts, int TopK, class Router, int Hidden = 20>
using routed = layer<shape{Hidden, 12, Experts, TopK}, Router, dropless, gated_mlp<silu>>;

// clang-format off
using routers = std::tuple<
    routed<4, 1, switch_top1>,
    routed<8, 2, softmax_top_k>,
    routed<8, 3, softmax_top_k_raw, 48>,
    routed<4, 4, top_k_softmax, 33>,
    routed<16, 4, sigmoid_top_k>,
    routed<8, 2, sigma_moe>,
    routed<1, 1, softmax_top_k>,
    routed<40, 8, softmax_top_k, 48>,  // more experts than a block
    routed<8, 2, sparsemixer<>>,
    routed<8, 2, precomputed>,
    routed<4, 1, shared<switch_top1>>,
    routed<8, 2, shared<router::with_bias<softmax_top_k>>>,
    routed<3, 2, on_input<precomputed>>,
    routed<8, 2, predicted<>>,
    layer<shape{20, 1, 4, 3}, predicted<published_prediction>, dropless, mlp<relu>>,  // of one unit, so that there are zeros
    routed<4, 2, hash_layer>,
    routed<8, 3, router::scaled<replayed<router::with_bias<softmax_top_k>>, 5, 2>>,
    routed<8, 2, with_router_input<top_k_softmax, 36>>,
    routed<8, 3, router::scaled<with_expert_dropout<router::with_bias<softmax_top_k>, 1, 2>, 5, 2>>,  // often fewer than three left
    routed<8, 3, restricted<router::with_bias<softmax_top_k>>>,
    routed<8, 2, router::with_bias<s_base<as_published>>>,
    routed<8, 6, router::scaled<softmax_top_k_raw, 16>>,
    routed<8, 3, router::scaled<unweighted_top_k, 5, 2>>,
    routed<8, 3, nearest_centers>,
    routed<8, 3, mlp_selector, 33>,
    routed<8, 2, with_weight_element<softmax_top_k, bfloat16>>,
    routed<4, 4, with_weight_element<router::with_bias<top_k_softmax>, half>, 33>>;
using more_routers = std::tuple<
    routed<3, 3, softmax_top_k, 2>,
    routed<16, 2, sparsemixer<1, 4>>,
    routed<4, 2, router::with_bias<top_k_softmax>>,
    routed<4, 2, on_input<sigmoid_top_k>>,
    routed<70, 3, shared<s_base<>>, 48>,
    routed<8, 3, router::scaled<with_expert_dropout<s_base<sinkhorn_traits{.iterations = 1}>, 1, 2>, 5, 2>>,
    routed<8, 2, replayed<s_base<>>>,
    routed<70, 3, shared<mlp_selector>, 48>,
    routed<4, 4, shared<nearest_centers>, 33>,
    routed<8, 3, with_expert_dropout<nearest_centers, 1, 2>>,
    layer<shape{20, 17, 4, 1}, adaptive_clustering<s_base<>>, queued<factor<1>, queue::priority>, mlp<relu>>>;

using composed_routers = std::tuple<
    routed<3, 2, top_k<scores::softmax, selection::best, weighting::l2>>,
    routed<8, 3, top_k<scores::sqrt_softplus, selection::corrected, weighting::sum>>,
    routed<16, 4, top_k<scores::softmax, selection::grouped<4, 2, group_score::max>, weighting::as_scored>>,
    routed<16, 3, top_k<scores::sigmoid, grouped_corrected<8, 3, group_score::max>, weighting::l2>>,
    routed<16, 4, router::scaled<top_k<scores::sigmoid, grouped_corrected<4, 2, group_score::top2_sum>, weighting::sum>, 5, 2>>>;
using more_composed_routers = std::tuple<
    routed<8, 3, top_k<scores::sigmoid, selection::best, weighting::sum>>,
    routed<8, 2, top_k<scores::sigmoid, selection::corrected, weighting::sum>>,
    routed<4, 4, top_k<scores::softmax, selection::corrected, weighting::as_scored>>,
    routed<8, 2, top_k<scores::softmax, selection::grouped<2, 1, group_score::top2_sum>, weighting::sum>>>;

inline constexpr clustering_traits by_variance{.scales = true, .measure = dispersion::variance, .alpha_denominator = 10,
                                               .clip_numerator = 0, .scaling = feature_scaling::none};

using clustered_routers = std::tuple<
    routed<8, 2, adaptive_clustering<top_k_softmax>>,
    routed<8, 2, adaptive_clustering<top_k_softmax, counting_empty(language_model)>, 33>,
    routed<8, 2, adaptive_clustering<router::with_bias<top_k_softmax>, by_variance>>,
    routed<4, 1, shared<adaptive_clustering<switch_top1>>>,
    layer<shape{20, 17, 4, 2}, on_input<adaptive_clustering<sigmoid_top_k>>, factor<1>, mlp<relu>>,
    layer<shape{20, 17, 4, 2}, adaptive_clustering<softmax_top_k_raw, vision>, on_drop<factor<1, 2>, dropped::weighted_input>, with_shared<mlp<relu>, 9, shared_gate::sigmoid>>,
    layer<shape{20, 17, 4, 2}, adaptive_clustering<softmax_top_k_raw, vision>, on_drop<factor<1, 2>, dropped::input>, mlp<relu>>>;
using more_clustered_routers = std::tuple<
    routed<1, 1, adaptive_clustering<switch_top1>>,
    routed<12, 3, adaptive_clustering<sigmoid_top_k>, 48>,
    routed<4, 2, adaptive_clustering<softmax_top_k_raw, vision>>,
    routed<4, 2, adaptive_clustering<shared<softmax_top_k>, counting_empty(vision)>>>;

using stratified_routers = std::tuple<
    routed<8, 2, stratified<softmax_top_k, 4, 4>>,
    routed<8, 2, stratified<softmax_top_k_raw, 2, 2, 4>, 48>,
    routed<3, 2, stratified<softmax_top_k, 2, 1>, 33>,  // one expert left for two choices
    routed<6, 2, without_stratum_norms<stratified<sigmoid_top_k, 3, 3>>>,
    routed<8, 2, router::scaled<shared<stratified<top_k<scores::sigmoid, selection::corrected, weighting::sum>, 4, 4>>, 5, 2>>,
    layer<shape{20, 17, 8, 2}, on_input<stratified<sigmoid_top_k, 5, 3>>, dropless, expert::with_bias<mlp<relu>>>,
    layer<shape{20, 17, 8, 2}, stratified<softmax_top_k_raw, 2, 4, 2>, renormalised<share_of_tokens<1, 4>>, expert::with_bias<gated_mlp<silu>>>,
    layer<shape{20, 17, 4, 2}, stratified<softmax_top_k, 2, 2>, on_drop<queued<factor<1, 2>, queue::priority>, dropped::weighted_input>, mlp<relu>>,
    layer<shape{20, 17, 4, 2}, with_separate_residual<stratified<softmax_top_k, 2, 2>>, on_drop<queued<fixed<9>, queue::token_order>, dropped::input>, mlp<relu>>>;
using more_stratified_routers = std::tuple<
    routed<4, 1, stratified<switch_top1, 1, 1, 1, 1>>,
    routed<4, 2, stratified<softmax_top_k, 4>>,  // one stratum
    routed<6, 2, with_separate_residual<stratified<softmax_top_k, 2, 4>>>,
    routed<8, 2, stratified<shared<router::with_bias<softmax_top_k>>, 4, 4>>,
    layer<shape{20, 17, 8, 1}, stratified<switch_top1, 4, 4>, share_of_tokens<17, 100>, expert::with_bias<mlp<relu>>>,
    layer<shape{20, 17, 8, 2}, stratified<softmax_top_k_raw, 4, 4>, renormalised<factor<2, 1, rounding::fairseq>>, mlp<relu>>>;

template <int Experts, int TopK, class Capacity, class Router = softmax_top_k>
using limited = layer<shape{20, 17, Experts, TopK}, Router, Capacity, mlp<relu>>;

using capacities = std::tuple<
    limited<4, 2, fixed<0>>,
    limited<4, 1, factor<5, 4, rounding::mesh, 4>, switch_top1>,
    limited<3, 2, factor<1, 2, rounding::fairseq>>,
    limited<8, 2, factor<1, 1, rounding::tutel, 0, 4>>,
    limited<4, 4, factor<3, 4, rounding::ceil, 2>>,
    limited<8, 2, counting_padding<share_of_tokens<1, 4>>>,
    limited<8, 3, queued<factor<1>, queue::token_order>, softmax_top_k_raw>,
    limited<8, 3, queued<factor<1>, queue::choice_order>, softmax_top_k_raw>,
    limited<8, 3, queued<factor<1>, queue::priority>, softmax_top_k_raw>,
    limited<4, 2, queued<fixed<9>, queue::priority>, precomputed>,
    limited<4, 1, on_drop<factor<1>, dropped::weighted_input>, switch_top1>,
    limited<3, 2, on_drop<fixed<30>, dropped::input>>,
    limited<8, 2, renormalised<queued<share_of_tokens<1, 8>, queue::priority>>, softmax_top_k_raw>,
    limited<8, 3, on_drop<renormalised<fixed<5>>, dropped::input>, softmax_top_k_raw>>;
using more_capacities = std::tuple<
    limited<8, 2, fixed<3>>,
    limited<4, 1, factor<5, 4>, switch_top1>,
    limited<4, 2, on_drop<queued<factor<1, 2>, queue::priority>, dropped::weighted_input>, softmax_top_k_raw>,
    limited<4, 1, on_drop<factor<1, 2>, dropped::input>, switch_top1>,
    limited<8, 2, renormalised<factor<1>>, softmax_top_k_raw>,
    limited<3, 2, factor<1>, on_input<sigmoid_top_k>>>;

template <class Expert, int Hidden = 33, int Intermediate = 40, class Capacity = dropless, class Router = softmax_top_k>
using computed = layer<shape{Hidden, Intermediate, 3, 2}, Router, Capacity, Expert>;

using experts = std::tuple<
    computed<mlp<relu>>,
    computed<mlp<gelu>>,
    computed<gated_mlp<relu_squared>>,
    computed<gated_mlp<gelu_tanh>>,
    computed<gated_mlp<silu>, 64, 32>,  // exactly one block
    layer<shape{1030, 260, 2, 1}, switch_top1, dropless, gated_mlp<silu>>,  // more than one block everywhere
    computed<gated_mlp<clamped_swiglu<>>>,
    computed<gated_mlp<clamped_swiglu<1, 2, 2, 1>>, 20, 1>,
    computed<expert::with_bias<gated_mlp<silu>>>,
    computed<expert::scaled<expert::with_bias<mlp<relu>>, 4, 5>>,
    computed<with_output_bias<expert::with_bias<mlp<relu>>>, 33, 40, on_drop<factor<1, 2>, dropped::input>>,
    computed<top_k_units<mlp<relu>, 5>>,
    computed<top_k_units<gated_mlp<silu>, 30, unit_ranking::norm_compensated>, 20, 71>,
    computed<expert::with_bias<top_k_units<gated_mlp<silu>, 30>>, 20, 71, factor<1>, on_input<sigmoid_top_k>>,
    layer<shape{64, 32, 16, 5}, softmax_top_k_raw, on_drop<factor<1>, dropped::weighted_input>, with_shared<gated_mlp<silu>, 11>>,  // few units, many choices
    computed<with_null_experts<gated_mlp<silu>, null_experts{.identity = 5}>, 64, 32>,
    computed<expert::scaled<with_null_experts<mlp<relu>, null_experts{.constant = 1, .mixed_constant = 2, .identity = 1, .zero = 1}>, 4, 5>, 33, 40, on_drop<factor<1, 2>, dropped::input>>,
    computed<with_null_experts<mlp<relu>, null_experts{.identity = 1, .zero = 2}>, 33, 40, renormalised<queued<fixed<9>, queue::priority>>, precomputed>>;
using more_experts = std::tuple<
    computed<mlp<relu_squared>>,
    computed<gated_mlp<clamped_swiglu<7, 4, 1, 1, 0>>>,
    computed<mlp<gelu_tanh>>,
    computed<mlp<silu>>,
    computed<gated_mlp<relu>>,
    computed<gated_mlp<gelu>>,
    layer<shape{96, 64, 8, 4}, on_input<sigmoid_top_k>, factor<1>, expert::scaled<mlp<relu>, 4, 5>>,
    computed<expert::with_bias<mlp<relu>>>>;

using shared_experts = std::tuple<
    computed<with_shared<gated_mlp<silu>, 11>>,
    computed<with_shared<expert::with_bias<gated_mlp<clamped_swiglu<>>>, 40, shared_gate::sigmoid>>,
    computed<expert::scaled<with_shared<mlp<relu>, 9>, 1, 2>, 20, 17, on_drop<factor<1, 2>, dropped::input>>,
    computed<expert::scaled<expert::with_bias<with_shared<gated_mlp<silu>, 9>>, 5, 4>, 20, 17, factor<1>, on_input<sigmoid_top_k>>>;
using more_shared_experts = std::tuple<
    computed<with_shared<mlp<gelu>, 70>>,
    computed<with_shared<gated_mlp<silu>, 11, shared_gate::sigmoid>>>;

template <class Element, int Experts, int TopK, class Router, class Capacity, class Expert>
using stored = layer<shape{48, 40, Experts, TopK}, Router, Capacity, Expert, backend::cpu, Element>;

template <class Element>
using stored_as = std::tuple<
    stored<Element, 8, 2, softmax_top_k, dropless, gated_mlp<silu>>,
    stored<Element, 4, 1, switch_top1, on_drop<factor<5, 4>, dropped::weighted_input>, mlp<gelu>>,
    stored<Element, 3, 2, on_input<sigmoid_top_k>, factor<1>, with_shared<gated_mlp<silu>, 17, shared_gate::sigmoid>>,
    stored<Element, 6, 2, stratified<softmax_top_k, 3, 3>, dropless, gated_mlp<silu>>,
    stored<Element, 3, 2, softmax_top_k, dropless, top_k_units<mlp<relu>, 5, unit_ranking::norm_compensated>>,
    stored<Element, 3, 2, with_weight_element<softmax_top_k, Element>, dropless, with_null_experts<mlp<relu>, null_experts{.constant = 1, .mixed_constant = 1, .identity = 2, .zero = 1}>>,
    layer<shape{1043, 270, 2, 1}, switch_top1, dropless, mlp<relu>, backend::cpu, Element>>;  // more than one piece
template <class Element>
using more_stored_as = std::tuple<
    layer<shape{64, 32, 8, 4}, softmax_top_k, dropless, gated_mlp<silu>, backend::cpu, Element>,
    stored<Element, 4, 2, router::with_bias<top_k_softmax>, dropless, expert::with_bias<gated_mlp<clamped_swiglu<>>>>,
    stored<Element, 4, 2, adaptive_clustering<top_k_softmax>, dropless, gated_mlp<silu>>,
    stored<Element, 4, 2, adaptive_clustering<softmax_top_k_raw, vision>, dropless, with_shared<mlp<gelu>, 17>>>;
// clang-format on

using elements = decltype(std::tuple_cat(std::declval<stored_as<bfloat16>>(), std::declval<stored_as<half>>()));
using more_elements =
    decltype(std::tuple_cat(std::declval<more_stored_as<bfloat16>>(), std::declval<more_stored_as<half>>()));

template <class Layer, class Backend>
struct moved;
template <shape Dims, class Router, class Capacity, class Expert, class From, class Element, class Backend>
struct moved<layer<Dims, Router, Capacity, Expert, From, Element>, Backend> {
  using type = layer<Dims, Router, Capacity, Expert, Backend, Element>;
};
template <class List, class Backend>
struct all_moved;
template <class... Layers, class Backend>
struct all_moved<std::tuple<Layers...>, Backend> {
  using type = std::tuple<typename moved<Layers, Backend>::type...>;
};

/// The same layers on another backend.
template <class List, class Backend>
using on = typename all_moved<List, Backend>::type;

}  // namespace tested

/// What every build and backend runs, and what only the CPU does.
using tested_layers =
    decltype(std::tuple_cat(std::declval<tested::routers>(), std::declval<tested::composed_routers>(),
                            std::declval<tested::clustered_routers>(), std::declval<tested::stratified_routers>(),
                            std::declval<tested::capacities>(), std::declval<tested::experts>(),
                            std::declval<tested::shared_experts>(), std::declval<tested::elements>()));
using more_tested_layers = decltype(std::tuple_cat(
    std::declval<tested::more_routers>(), std::declval<tested::more_composed_routers>(),
    std::declval<tested::more_clustered_routers>(), std::declval<tested::more_stratified_routers>(),
    std::declval<tested::more_capacities>(), std::declval<tested::more_experts>(),
    std::declval<tested::more_shared_experts>(), std::declval<tested::more_elements>()));
