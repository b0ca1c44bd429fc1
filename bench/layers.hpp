#pragma once

#include <switchyard/switchyard.hpp>

#include <tuple>

namespace switchyard::bench {

/// A small layer, for variants that differ in anything but the matrix products.
template <class Router, class Capacity = capacity::dropless, class Element = float>
using small_layer = layer<shape{.hidden = 512, .intermediate = 512, .experts = 16, .top_k = 2}, Router, Capacity,
                          expert::gated_mlp<silu>, backend::cpu, Element>;

/// What is measured: one line each. The small ones are what a smoke run takes.
using measured_layers = std::tuple<                                                              //
    small_layer<router::softmax_top_k>,                                                          //
    small_layer<router::softmax_top_k, capacity::dropless, bfloat16>,                            //
    small_layer<router::softmax_top_k, capacity::factor<5, 4>>,                                  //
    small_layer<router::softmax_top_k, capacity::queued<capacity::factor<1>, queue::priority>>,  //
    small_layer<router::sparsemixer<1, 100>>,                                                    //
    presets::switch_base_8<float>,                                                               //
    presets::switch_base_8<bfloat16>,                                                            //
    presets::granite_1b_a400m<bfloat16>,                                                         //
    presets::olmoe_1b_7b<float>,                                                                 //
    presets::olmoe_1b_7b<bfloat16>,                                                              //
    presets::qwen3_30b_a3b<float>,                                                               //
    presets::qwen3_30b_a3b<bfloat16>,                                                            //
    presets::mixtral_8x7b<bfloat16>>;

}  // namespace switchyard::bench
