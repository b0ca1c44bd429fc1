#include "../layer_bench.cuh"

static bool const added = switchyard::bench::add_layer<
    switchyard::presets::mixtral_8x7b<switchyard::bfloat16, switchyard::bench::gpu_backend>>();
