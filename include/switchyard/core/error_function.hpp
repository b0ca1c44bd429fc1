#pragma once

#include <switchyard/core/choose.hpp>
#include <switchyard/core/exponential.hpp>
#include <switchyard/core/host_device.hpp>

#include <cmath>

namespace switchyard {

/// erf(x) within two units of the last place, from 1e-36 on; a NaN goes through. On the host it calls nothing, so that loops of it become vectors.
///
/// Up to 0.9, erf(x) - x is a polynomial in x; above, the logarithm of 1 - erf(x) is one, up to 3.95, where the result becomes 1. Both have
/// the least largest error for their degrees (Remez), relative to erf(x).
SWITCHYARD_HD inline float error_function(float x) {
#if defined(__CUDA_ARCH__)
  return std::erf(x);
#else
  float const t = std::fabs(x), s = x * x;
  float p = -6.102687037e-4f;
  p = p * s + 5.014484151e-3f;
  p = p * s - 2.678071913e-2f;
  p = p * s + 1.128219409e-1f;
  p = p * s - 3.761252880e-1f;
  p = p * s + 1.283791547e-1f;
  float q = -9.584764991e-6f;  // below zero, so that what is beyond 3.95 has a logarithm far below zero
  q = q * t + 3.064902941e-4f;
  q = q * t - 3.576854159e-3f;
  q = q * t + 2.362494181e-2f;
  q = q * t - 1.060796918e-1f;
  q = q * t - 6.352450835e-1f;
  q = q * t - 1.286257300e-1f;
  return std::copysign(choose(t < 0.9f, p * t + t, 1.0f - exponential(q * t - t)), x);
#endif
}

}  // namespace switchyard
