#include "../methods/methods.cuh"

#if defined(SWITCHYARD_BENCH_ON_HOPPER)
#include "../tilings/tilings.cuh"
#endif

// What a smoke run takes. In one file where methods and tilings have kernels in common.
namespace switchyard::bench {

static bool const layers_compiled = compile_layers<0>();
static bool const methods_compiled = compile_methods<small_shape>(true);
#if defined(SWITCHYARD_BENCH_ON_HOPPER)
static bool const tilings_compiled = compile_tilings<methods<small_shape, gpu_backend>::base>(true);
#endif

}  // namespace switchyard::bench
