#include "../layer_bench.cuh"

static bool const added = switchyard::bench::add_layer<
    switchyard::presets::olmoe_1b_7b<switchyard::bfloat16, switchyard::bench::gpu_backend>>();
