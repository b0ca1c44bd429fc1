#include "vectorised.hpp"

#include <algorithm>
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

float round_to_bytes(float const* from, int n, std::int8_t* to) {
  float most = 0.0f;
#pragma omp simd reduction(max : most)
  for (int i = 0; i < n; ++i) most = std::max(most, std::fabs(from[i]));
  float const inverse = most > 0.0f ? 127.0f / most : 0.0f;
#pragma omp simd
  for (int i = 0; i < n; ++i) to[i] = static_cast<std::int8_t>(std::nearbyint(from[i] * inverse));
  return most / 127.0f;
}

}  // namespace switchyard::bench::peers
