#pragma once

// Infinities close experts and NaNs show what went wrong, and additions in another order lose what was split off exactly.
#if (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__ != 0) || defined(__ASSOCIATIVE_MATH__)
#error \
    "switchyard: -ffast-math, -Ofast and their like (-ffinite-math-only, -funsafe-math-optimizations) make wrong numbers of \
right code. Compile the files that include switchyard without them, with -fno-fast-math as the last option; others may keep them."
#endif

/// Marks a function that runs on the host and, when compiled by nvcc, on the device too.
#if defined(__CUDACC__)
#define SWITCHYARD_HD __host__ __device__
#else
#define SWITCHYARD_HD
#endif
