#include "../layer_bench.cuh"

static bool const added = switchyard::bench::add_layer<
    switchyard::presets::qwen3_30b_a3b<switchyard::bfloat16, switchyard::bench::gpu_backend>>();
