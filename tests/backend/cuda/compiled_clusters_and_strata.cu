// Compiles lists of layers for the GPU, for forward_test.cu: those whose kernels before and after routing no other has.
#include "device.cuh"

static bool const here = support::compile<tested::clustered_routers, switchyard::backend::cuda>() &&
                         support::compile<tested::stratified_routers, switchyard::backend::cuda>();
