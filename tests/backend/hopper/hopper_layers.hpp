#pragma once

#include <switchyard/switchyard.cuh>

#include <tuple>
#include <utility>

#include "layers.hpp"

/// The layers that run the products of backend::hopper: policies of the CPU's list in two-byte elements, at widths that these
/// products take, and what is particular about them.
namespace tested {

template <class Layer, class Element>
struct hopper_layer;
template <shape Dims, class Router, class Capacity, class Expert, class Backend, class From, class Element>
struct hopper_layer<layer<Dims, Router, Capacity, Expert, Backend, From>, Element> {
  using type =
      layer<shape{48, 40, Dims.experts, Dims.top_k}, Router, Capacity, Expert, switchyard::backend::hopper, Element>;
};
template <class List, class Element = bfloat16>
struct all_on_hopper;
template <class... Layers, class Element>
struct all_on_hopper<std::tuple<Layers...>, Element> {
  using type = std::tuple<typename hopper_layer<Layers, Element>::type...>;
};

/// The policies of a list.
template <class List, class Element = bfloat16>
using on_hopper = typename all_on_hopper<List, Element>::type;

// clang-format off
/// What the products see of routers and capacities: routes and plans, the weights of pairs that multiply the input, tokens
/// that stand elsewhere, weights that begin at a higher expert. The rest of a layer is that of backend::cuda.
using policies = on_hopper<std::tuple<
    routed<8, 2, softmax_top_k>,
    routed<4, 1, switch_top1>,
    routed<40, 8, softmax_top_k>,
    routed<8, 2, precomputed>,
    routed<3, 2, on_input<precomputed>>,
    routed<8, 2, shared<router::with_bias<softmax_top_k>>>,
    routed<16, 4, router::scaled<top_k<scores::sigmoid, grouped_corrected<4, 2, group_score::top2_sum>, weighting::sum>, 5, 2>>,
    routed<8, 2, adaptive_clustering<top_k_softmax>>,
    layer<shape{20, 17, 4, 2}, on_input<adaptive_clustering<sigmoid_top_k>>, factor<1>, mlp<relu>>,
    layer<shape{20, 17, 4, 2}, adaptive_clustering<softmax_top_k_raw, vision>, on_drop<factor<1, 2>, dropped::weighted_input>, with_shared<mlp<relu>, 16, shared_gate::sigmoid>>,
    routed<8, 2, stratified<softmax_top_k_raw, 2, 2, 4>>,
    layer<shape{20, 17, 8, 2}, on_input<stratified<sigmoid_top_k, 5, 3>>, dropless, expert::with_bias<mlp<relu>>>,
    layer<shape{20, 17, 4, 2}, with_separate_residual<stratified<softmax_top_k, 2, 2>>, on_drop<queued<fixed<9>, queue::token_order>, dropped::input>, mlp<relu>>,
    limited<4, 2, fixed<0>>,
    limited<8, 3, queued<factor<1>, queue::choice_order>, softmax_top_k_raw>,
    limited<4, 2, queued<fixed<9>, queue::priority>, precomputed>,
    limited<8, 3, on_drop<renormalised<fixed<5>>, dropped::input>, softmax_top_k_raw>>>;
// clang-format on

template <int Hidden, int Intermediate, class Expert, class Element, class Backend = switchyard::backend::hopper>
using shaped = layer<shape{Hidden, Intermediate, 3, 2}, softmax_top_k, dropless, Expert, Backend, Element>;

// clang-format off
using hopper_shapes = std::tuple<
    shaped<64, 64, gated_mlp<silu>, bfloat16>,    // exactly one stage
    shaped<8, 8, mlp<relu>, half>,
    shaped<328, 264, gated_mlp<silu>, bfloat16>,  // more stages than the ring has, more than one tile of columns
    shaped<328, 264, mlp<gelu>, half>,
    shaped<520, 1032, mlp<relu>, bfloat16>,       // a depth that makes warpgroups cooperate at the second product
    shaped<136, 136, expert::with_bias<gated_mlp<clamped_swiglu<>>>, half>,
    shaped<136, 72, top_k_units<gated_mlp<silu>, 20>, bfloat16>,
    shaped<136, 72, top_k_units<mlp<relu>, 20>, half>,
    shaped<136, 72, with_null_experts<gated_mlp<silu>, null_experts{.mixed_constant = 1, .identity = 4}>, bfloat16>,
    layer<shape{136, 264, 3, 2}, on_input<sigmoid_top_k>, factor<1>, expert::with_bias<mlp<relu>>, switchyard::backend::hopper, bfloat16>,
    layer<shape{136, 72, 3, 2}, softmax_top_k, dropless, with_shared<gated_mlp<silu>, 200>, switchyard::backend::hopper, bfloat16>,
    layer<shape{136, 72, 8, 2}, softmax_top_k, dropless, with_shared<mlp<gelu>, 328, shared_gate::sigmoid>, switchyard::backend::hopper, half>,
    layer<shape{48, 40, 3, 2}, on_input<sigmoid_top_k>, factor<1>, expert::scaled<expert::with_bias<with_shared<gated_mlp<silu>, 16>>, 5, 4>, switchyard::backend::hopper, bfloat16>>;

/// Layers that have no products of their own.
using fallen_back = std::tuple<
    shaped<64, 64, gated_mlp<silu>, float>,
    shaped<64, 60, gated_mlp<silu>, bfloat16>,
    shaped<36, 64, mlp<relu>, half>,
    layer<shape{48, 40, 3, 2}, softmax_top_k, dropless, with_shared<gated_mlp<silu>, 11>, switchyard::backend::hopper, bfloat16>>;
// clang-format on

/// Tilings that the default does not choose, on two blocks, each of which has many tiles. Every tile goes round the ring of
/// stages once or twice.
template <hopper_schedule Schedule, int Rows, int Columns, int Cluster, int Group>
struct one_tiling {
  static constexpr auto label = "tiling<" + decimal<Rows>() + "," + decimal<Columns>() + "," + decimal<Cluster>() +
                                "," + decimal<static_cast<int>(Schedule)>() + ">";
  static constexpr std::string_view name = label;
  template <class Layer>
  static constexpr hopper_tuning of() {
    constexpr hopper_tile tile{.rows = Rows,
                               .columns = Columns,
                               .stages = 3,
                               .schedule = Schedule,
                               .cluster = Cluster,
                               .group = Group,
                               .chosen_by = "the tests"};
    return {.few_rows = 0, .in = tile, .out = tile, .most_blocks = 2};
  }
};

template <class Expert, hopper_schedule Schedule, int Rows, int Columns, int Cluster, int Group>
using tiled = shaped<328, 264, Expert, bfloat16,
                     switchyard::backend::hopper_with<one_tiling<Schedule, Rows, Columns, Cluster, Group>>>;

using hopper_tilings = std::tuple<tiled<gated_mlp<silu>, hopper_schedule::cooperative, 256, 128, 1, 1>,
                                  tiled<gated_mlp<silu>, hopper_schedule::ping_pong, 64, 256, 2, 3>,
                                  tiled<mlp<relu>, hopper_schedule::cooperative, 128, 64, 2, 4>,
                                  tiled<mlp<relu>, hopper_schedule::ping_pong, 128, 192, 2, 2>,
                                  tiled<mlp<relu>, hopper_schedule::cooperative, 128, 192, 2, 2>>;

}  // namespace tested
