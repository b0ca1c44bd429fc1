// Compiles a list of layers for the GPU, for forward_test.cu.
#include "device.cuh"

static bool const here = support::compile<tested::capacities, switchyard::backend::cuda>();
