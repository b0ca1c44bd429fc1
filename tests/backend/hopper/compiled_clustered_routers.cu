// Compiles a list of layers for Hopper, for forward_test.cu.
#include "backend/cuda/device.cuh"
#include "backend/hopper/hopper_layers.hpp"

static bool const here =
    support::compile_all(static_cast<tested::on_hopper<tested::clustered_routers> const*>(nullptr));
