#include "../layer_bench.cuh"

static bool const added = switchyard::bench::add_layer<
    switchyard::presets::gpt_oss_20b<switchyard::bfloat16, switchyard::bench::gpu_backend>>();
