#pragma once

#include "../erased.hpp"

namespace switchyard::bench {

/// Adds the layers on the CPU, which those on the GPU are compared with.
void add_cpu_methods(gpu_methods& to);

}  // namespace switchyard::bench
