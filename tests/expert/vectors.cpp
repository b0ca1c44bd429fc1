// What becomes of activations in the kernels, for vectors.cmake to look at: every one with every instruction set, at the lowest level at
// which programs are compiled for speed.
#include <switchyard/backend/cpu/tile.hpp>
#include <switchyard/expert/activation.hpp>

#define SWITCHYARD_ACTIVATE(space, Activation, gated) \
  template void space::activate<Activation, gated>(float const*, float const*, float const*, float, float, int, float*);
#define SWITCHYARD_ACTIVATE_BOTH(space, Activation) \
  SWITCHYARD_ACTIVATE(space, Activation, false)     \
  SWITCHYARD_ACTIVATE(space, Activation, true)
#define SWITCHYARD_ACTIVATE_ALL(space)          \
  SWITCHYARD_ACTIVATE_BOTH(space, relu)         \
  SWITCHYARD_ACTIVATE_BOTH(space, relu_squared) \
  SWITCHYARD_ACTIVATE_BOTH(space, gelu)         \
  SWITCHYARD_ACTIVATE_BOTH(space, gelu_tanh)    \
  SWITCHYARD_ACTIVATE_BOTH(space, silu)         \
  SWITCHYARD_ACTIVATE(space, clamped_swiglu<>, true)

namespace switchyard::cpu {

SWITCHYARD_ACTIVATE_ALL(portable)
SWITCHYARD_ACTIVATE_ALL(avx2)
SWITCHYARD_ACTIVATE_ALL(avx512)

}  // namespace switchyard::cpu
