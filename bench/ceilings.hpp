#pragma once

/// What the machine can do at most. The least time that a step can take follows from these two.
namespace switchyard::bench {

struct ceilings {
  double flops = 0.0;  ///< float multiplications and additions a second, in registers
  double bytes = 0.0;  ///< bytes read a second from memory, beyond the caches
};

/// Measures both on so many threads; takes about `seconds`.
ceilings measure_ceilings(int threads, double seconds);

}  // namespace switchyard::bench
