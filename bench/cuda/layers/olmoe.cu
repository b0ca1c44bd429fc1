#include "../methods/methods.cuh"

// Its shape is that of the methods, too: in one file, where they have kernels in common.
namespace switchyard::bench {

static bool const olmoe_compiled = compile_layers<2>();
static bool const methods_compiled = compile_methods<olmoe_shape>();

}  // namespace switchyard::bench
