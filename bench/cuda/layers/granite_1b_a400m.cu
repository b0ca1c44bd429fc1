#include "../layer_bench.cuh"

static bool const added = switchyard::bench::add_layer<
    switchyard::presets::granite_1b_a400m<switchyard::bfloat16, switchyard::bench::gpu_backend>>();
