#include "tilings.cuh"

static bool const compiled = switchyard::bench::compile_tilings<
    switchyard::presets::gpt_oss_20b<switchyard::bfloat16, switchyard::bench::gpu_backend>>();
