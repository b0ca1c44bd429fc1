#pragma once

#include <switchyard/core/host_device.hpp>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace switchyard {

// clang does not say whether it may add in another order (-funsafe-math-optimizations), but can be told not to.
#if defined(__clang__) && !defined(__CUDA_ARCH__)
#pragma float_control(precise, on, push)
#endif

namespace detail {

/// The exponential of a float, or of each of a vector of floats; `Bits` are as many unsigned integers of 32 bits.
template <class Floats, class Bits>
inline Floats exponential_of(Floats x) {
  constexpr float round = 12582912.0f;  // 1.5 * 2^23: what is added to it loses its fraction
  Floats const none{};
  x = x > 89.0f ? none + 89.0f : x;
  x = x < -87.0f ? none - 87.0f : x;
  Floats const shifted = x * 1.44269504f + round;
  Floats const n = shifted - round;
  Floats const r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = none + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  Floats const y = p * r * r + r + 1.0f;
  Bits const power = (__builtin_bit_cast(Bits, shifted) << 23) + 0x3f800000u;
  return y * __builtin_bit_cast(Floats, power);
}

}  // namespace detail

/// exp(x) within two units of the last place, from 1e-38 to 2e38; infinite above, and a NaN goes through. On the host it calls nothing.
/// Source: Moshier 1989, Cephes, the polynomial of expf.
SWITCHYARD_HD inline float exponential(float x) {
#if defined(__CUDA_ARCH__)
  return std::exp(x);
#else
  return detail::exponential_of<float, std::uint32_t>(x);
#endif
}

/// The same of each of some values, in place, and 0 below -87, as of minus infinity. GCC makes jumps of the limits where it is left to make vectors of `exponential`.
template <int Count>
SWITCHYARD_HD inline void exponentials(float (&values)[Count]) {
#if defined(__CUDA_ARCH__)
  for (float& v : values) v = exponential(v);
#else
  using floats = float __attribute__((vector_size(16)));
  using bits = std::uint32_t __attribute__((vector_size(16)));
  constexpr int lanes = sizeof(floats) / sizeof(float);
  int i = 0;
  for (; i + lanes <= Count; i += lanes) {
    floats x;
    std::memcpy(&x, values + i, sizeof x);
    x = x < -87.0f ? floats{} : detail::exponential_of<floats, bits>(x);
    std::memcpy(values + i, &x, sizeof x);
  }
  for (; i < Count; ++i) values[i] = values[i] < -87.0f ? 0.0f : exponential(values[i]);
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
