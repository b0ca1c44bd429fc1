// Compiles lists of layers for Hopper, for forward_test.cu: those that share their tilings.
#include "backend/cuda/device.cuh"
#include "backend/hopper/hopper_layers.hpp"

static bool const here = support::compile_all(static_cast<tested::policies const*>(nullptr)) &&
                         support::compile_all(static_cast<tested::on_hopper<tested::experts> const*>(nullptr));
