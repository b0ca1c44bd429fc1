#pragma once

#include <switchyard/backend/cuda/half_rows.cuh>
#include <switchyard/core/view.hpp>

#include <cuda_runtime.h>

#include <cstdint>

/// What happens to the sums of a product, whichever kernel made them.
namespace switchyard::cuda {

/// A bias of a feature below `features`, 0 where there is none.
template <class Element>
__device__ float bias_of(bias_view<Element> const& bias, int expert, int feature, int features) {
  bool const has = bias.data != nullptr && feature < features;
  return has ? static_cast<float>(bias.data[expert * bias.expert_stride + feature * bias.stride]) : 0.0f;
}

/// What a product makes of the sum of a feature, and of its gate's. W (w x) = w (W x): the weight of a row multiplies before the bias.
/// `Adjusted`: sums may be multiplied by weights or have a bias; where they never do, that costs nothing, for a compiler may not leave
/// out 1 * x + 0.
template <class Problem, bool Adjusted>
__device__ float finished(float weight, float gate, float sum, float gate_bias, float bias) {
  auto const adjusted = [weight](float x, float shift) {
    if constexpr (Adjusted && Problem::gathers) return weight * x + shift;
    if constexpr (Adjusted) return x + shift;
    return x;
  };
  if constexpr (!Problem::gathers) {
    return adjusted(sum, bias);
  } else if constexpr (Problem::gated) {
    return Problem::activation::apply(adjusted(gate, gate_bias), adjusted(sum, bias));
  } else {
    return Problem::activation::apply(adjusted(sum, bias));
  }
}

/// Divides eight features of a row by the power of two that the row's 32 features need to be half elements, and writes its exponent:
/// four neighbouring lanes have eight features each.
__device__ inline void bring_into_range(row_exponents const& exponents, std::int64_t row, int feature, bool exists,
                                        float (&values)[8]) {
  int const exponent = write_exponent(exponents, row, feature, exists, values);
  if (exponent == 0) return;
#pragma unroll
  for (float& value : values) value *= power_of_two(-exponent);
}

}  // namespace switchyard::cuda
