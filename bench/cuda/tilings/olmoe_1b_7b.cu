#include "tilings.cuh"

static bool const compiled = switchyard::bench::compile_tilings<
    switchyard::presets::olmoe_1b_7b<switchyard::bfloat16, switchyard::bench::gpu_backend>>();
