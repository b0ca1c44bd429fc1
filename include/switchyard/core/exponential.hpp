#pragma once

#include <switchyard/core/choose.hpp>
#include <switchyard/core/host_device.hpp>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace switchyard {

// clang does not say whether it may add in another order (-funsafe-math-optimizations), but can be told not to.
#if defined(__clang__) && !defined(__CUDA_ARCH__)
#pragma float_control(precise, on, push)
#endif

/// exp(x) within two units of the last place, from 1e-38 to 2e38; infinite above, and a NaN goes through. On the host it calls nothing and
/// does not branch, so that loops of it become vectors.
/// Source: Moshier 1989, Cephes, the polynomial of expf.
SWITCHYARD_HD inline float exponential(float x) {
#if defined(__CUDA_ARCH__)
  return std::exp(x);
#else
  constexpr float round = 12582912.0f;  // 1.5 * 2^23: what is added to it loses its fraction
  x = choose(x > 89.0f, 89.0f, x);
  x = choose(x < -87.0f, -87.0f, x);
  float const shifted = x * 1.44269504f + round;
  float const n = shifted - round;
  float const r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  float const y = p * r * r + r + 1.0f;
  std::uint32_t const power = (__builtin_bit_cast(std::uint32_t, shifted) << 23) + 0x3f800000u;
  return y * __builtin_bit_cast(float, power);
#endif
}

/// The same of each of some values, in place, and 0 below -87, as of minus infinity.
template <int Count>
SWITCHYARD_HD inline void exponentials(float (&values)[Count]) {
#if defined(__CUDA_ARCH__)
  for (float& v : values) v = exponential(v);
#else
  for (float& v : values) v = choose(v < -87.0f, 0.0f, exponential(v));
#endif
}

#if defined(__clang__) && !defined(__CUDA_ARCH__)
#pragma float_control(pop)
#endif

/// a / b within two units of the last place, for b from 1e-38 to 8e37; 0 for larger ones. A GPU has no instruction for a
/// division that is right to the last bit, and takes many.
SWITCHYARD_HD inline float quotient(float a, float b) {
#if defined(__CUDA_ARCH__)
  float reciprocal;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(b));
  return a * reciprocal;
#else
  return a / b;
#endif
}

}  // namespace switchyard
