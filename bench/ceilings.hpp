#pragma once

#include <switchyard/core/bfloat16.hpp>

#include <type_traits>

/// What the machine can do at most. The least time that a step can take follows from it.
namespace switchyard::bench {

struct ceilings {
  double flops = 0.0;       ///< float multiplications and additions a second, in registers
  double bytes = 0.0;       ///< bytes read a second from memory, beyond the caches
  double tile_flops = 0.0;  ///< the same of bfloat16 tiles (AMX); 0 where the machine has none

  template <class Element>
  double peak() const {
    return std::is_same_v<Element, bfloat16> && tile_flops > flops ? tile_flops : flops;
  }
};

/// Measures them on so many threads; takes about `seconds`.
ceilings measure_ceilings(int threads, double seconds);

}  // namespace switchyard::bench
