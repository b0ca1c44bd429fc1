// Compiles lists of layers for Hopper, for forward_test.cu. All of them in one unit: they share kernels.
#include "backend/cuda/device.cuh"
#include "backend/hopper/hopper_layers.hpp"

static bool const here = support::compile_all(static_cast<tested::policies const*>(nullptr)) &&
                         support::compile_all(static_cast<tested::on_hopper<tested::experts> const*>(nullptr)) &&
                         support::compile_all(static_cast<tested::hopper_shapes const*>(nullptr)) &&
                         support::compile_all(static_cast<tested::fallen_back const*>(nullptr)) &&
                         support::compile_all(static_cast<tested::hopper_tilings const*>(nullptr));
