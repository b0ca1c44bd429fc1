// Compiles lists of layers for the GPU, for forward_test.cu: those whose products differ.
#include "device.cuh"

static bool const here = support::compile<tested::experts, switchyard::backend::cuda>() &&
                         support::compile<tested::shared_experts, switchyard::backend::cuda>() &&
                         support::compile<tested::elements, switchyard::backend::cuda>();
