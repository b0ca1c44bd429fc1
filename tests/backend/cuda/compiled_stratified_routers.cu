// Compiles a list of layers for the GPU, for forward_test.cu.
#include "device.cuh"

static bool const here = support::compile<tested::stratified_routers, switchyard::backend::cuda>();
