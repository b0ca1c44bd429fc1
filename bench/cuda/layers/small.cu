#include "../methods/methods.cuh"

#if defined(SWITCHYARD_BENCH_ON_HOPPER)
#include "../tilings/tilings.cuh"
#endif

// What a smoke run takes. In one file where methods and tilings have kernels in common.
namespace switchyard::bench {

static bool const layers_compiled = compile_layers<0>();

template <shape Dims>
bool compile_small() {
#if defined(SWITCHYARD_BENCH_ON_HOPPER)
  compile_tilings<typename methods<Dims, gpu_backend>::base>(true);
#endif
  return compile_methods<Dims>(true);
}
static bool const methods_and_tilings_compiled = compile_small<small_shape>();

}  // namespace switchyard::bench
