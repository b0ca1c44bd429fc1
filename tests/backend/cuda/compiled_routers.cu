// Compiles lists of layers for the GPU, for forward_test.cu: those with float elements that have one kind of expert or two, and share its kernels.
#include "device.cuh"

static bool const here = support::compile<tested::routers, switchyard::backend::cuda>() &&
                         support::compile<tested::composed_routers, switchyard::backend::cuda>() &&
                         support::compile<tested::capacities, switchyard::backend::cuda>();
