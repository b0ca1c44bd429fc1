#pragma once

#include <switchyard/switchyard.cuh>

namespace switchyard::bench {

/// The backend that is benched: that of the GPU for which this is compiled.
#if defined(SWITCHYARD_BENCH_ON_HOPPER)
inline constexpr bool on_hopper = true;
using gpu_backend = backend::hopper;
#else
inline constexpr bool on_hopper = false;
using gpu_backend = backend::cuda;
#endif

}  // namespace switchyard::bench
