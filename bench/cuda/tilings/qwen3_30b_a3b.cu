#include "tilings.cuh"

static bool const compiled = switchyard::bench::compile_tilings<
    switchyard::presets::qwen3_30b_a3b<switchyard::bfloat16, switchyard::bench::gpu_backend>>();
