#include "../layer_bench.cuh"

static bool const added = switchyard::bench::add_layer<
    switchyard::presets::switch_base_128<switchyard::bfloat16, switchyard::bench::gpu_backend>>();
