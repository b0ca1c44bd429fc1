#include "../erase.hpp"

#include <switchyard/presets.hpp>

namespace switchyard::bench {

namespace {

bool const compiled = compile_layers<     //
    presets::granite_1b_a400m<bfloat16>,  //
    presets::olmoe_1b_7b<float>,          //
    presets::olmoe_1b_7b<bfloat16>,       //
    presets::qwen3_30b_a3b<float>,        //
    presets::qwen3_30b_a3b<bfloat16>,     //
    presets::mixtral_8x7b<bfloat16>>(100);

}  // namespace

}  // namespace switchyard::bench
