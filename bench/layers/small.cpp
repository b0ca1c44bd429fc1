#include "../erase.hpp"

#include <switchyard/presets.hpp>

// Variants that differ in anything but the matrix products. They and Switch-Base-8 are what a smoke run takes.
namespace switchyard::bench {

namespace {

template <class Router, class Capacity = capacity::dropless, class Element = float>
using small_layer = layer<shape{.hidden = 512, .intermediate = 512, .experts = 16, .top_k = 2}, Router, Capacity,
                          expert::gated_mlp<silu>, backend::cpu, Element>;

bool const compiled = compile_layers<                                                            //
    small_layer<router::softmax_top_k>,                                                          //
    small_layer<router::softmax_top_k, capacity::dropless, bfloat16>,                            //
    small_layer<router::softmax_top_k, capacity::factor<5, 4>>,                                  //
    small_layer<router::softmax_top_k, capacity::queued<capacity::factor<1>, queue::priority>>,  //
    small_layer<router::sparsemixer<1, 100>>,                                                    //
    presets::switch_base_8<float>,                                                               //
    presets::switch_base_8<bfloat16>>(0);

}  // namespace

}  // namespace switchyard::bench
