#include "silu.hpp"

#include <bit>
#include <cmath>
#include <cstdint>

namespace switchyard::bench::peers {

namespace {

float silu(float x) { return x / (1.0f + std::exp(-x)); }

}  // namespace

void silu_gated(float const* gate, float const* up, float* to, int n) {
#pragma omp simd
  for (int i = 0; i < n; ++i) to[i] = silu(gate[i]) * up[i];
}

void silu_gated(float const* gate, float const* up, std::uint16_t* to, int n) {
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    std::uint32_t const bits = std::bit_cast<std::uint32_t>(silu(gate[i]) * up[i]);
    to[i] = static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
  }
}

}  // namespace switchyard::bench::peers
