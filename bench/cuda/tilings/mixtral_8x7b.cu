#include "tilings.cuh"

static bool const compiled = switchyard::bench::compile_tilings<
    switchyard::presets::mixtral_8x7b<switchyard::bfloat16, switchyard::bench::gpu_backend>>();
