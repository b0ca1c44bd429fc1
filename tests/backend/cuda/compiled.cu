// Compiles lists of layers for the GPU, for forward_test.cu. All of them in one unit: they share kernels.
#include "device.cuh"

static bool const here = support::compile<tested::routers, switchyard::backend::cuda>() &&
                         support::compile<tested::composed_routers, switchyard::backend::cuda>() &&
                         support::compile<tested::clustered_routers, switchyard::backend::cuda>() &&
                         support::compile<tested::stratified_routers, switchyard::backend::cuda>() &&
                         support::compile<tested::capacities, switchyard::backend::cuda>() &&
                         support::compile<tested::experts, switchyard::backend::cuda>() &&
                         support::compile<tested::shared_experts, switchyard::backend::cuda>() &&
                         support::compile<tested::elements, switchyard::backend::cuda>();
