#pragma once

#include <switchyard/presets.hpp>

#include <tuple>

namespace switchyard::bench {

/// Everything that the bench knows: biases, a capacity that drops, a gated expert.
template <class Backend>
using small_layer =
    layer<shape{.hidden = 64, .intermediate = 96, .experts = 8, .top_k = 2}, router::with_bias<router::softmax_top_k>,
          capacity::factor<5, 4>, expert::with_bias<expert::gated_mlp<silu>>, Backend, bfloat16>;

/// The layers of the GPU's bench in the order of their blocks. The first is what a smoke run takes, and nothing else does.
/// A new one also stands in a file of `layers/`, which compiles it.
template <class Backend>
using gpu_layers = std::tuple<                    //
    small_layer<Backend>,                         //
    presets::mixtral_8x7b<bfloat16, Backend>,     //
    presets::olmoe_1b_7b<bfloat16, Backend>,      //
    presets::qwen3_30b_a3b<bfloat16, Backend>,    //
    presets::gpt_oss_20b<bfloat16, Backend>,      //
    presets::switch_base_128<bfloat16, Backend>,  //
    presets::granite_1b_a400m<bfloat16, Backend>>;

}  // namespace switchyard::bench
