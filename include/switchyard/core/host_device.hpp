#pragma once

/// Marks a function that runs on the host and, when compiled by nvcc, on the device too.
#if defined(__CUDACC__)
#define SWITCHYARD_HD __host__ __device__
#else
#define SWITCHYARD_HD
#endif
