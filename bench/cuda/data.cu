#include "device.hpp"
#include "kernels.hpp"

#include <thrust/execution_policy.h>
#include <thrust/tabulate.h>

namespace switchyard::bench {

namespace {

// One kind of values for each type, for every kind costs as long to compile as all else here.

/// Tokens whose first features name their experts; where there are no experts, noise.
struct element_at {
  shape dims;
  skew spread;
  std::uint32_t set, seed;
  float scale;
  __device__ bfloat16 operator()(std::int64_t i) const {
    if (dims.experts > 0 && i % dims.hidden < dims.experts) {
      return bfloat16(naming_feature(i / dims.hidden, static_cast<int>(i % dims.hidden), dims.experts, dims.top_k,
                                     spread, set));
    }
    return bfloat16(scale * noise(i, seed));
  }
};

/// A matrix with so much on its diagonal, and noise.
struct float_at {
  int columns;
  float diagonal;
  std::uint32_t seed;
  float scale;
  __device__ float operator()(std::int64_t i) const {
    return (i % columns == i / columns ? diagonal : 0.0f) + scale * noise(i, seed);
  }
};

template <class T, class Value>
void tabulate(T* to, std::int64_t count, Value const& value) {
  thrust::tabulate(thrust::device, to, to + count, value);
  check_cuda(cudaGetLastError());
}

}  // namespace

void fill_noise(bfloat16* to, std::int64_t count, std::uint32_t seed, float scale) {
  tabulate(to, count, element_at{{.experts = 0}, skew::uniform, 0, seed, scale});
}
void fill_noise(float* to, std::int64_t count, std::uint32_t seed, float scale) {
  tabulate(to, count, float_at{1, 0.0f, seed, scale});
}
void fill_router(float* to, shape dims) {
  tabulate(to, std::int64_t{dims.experts} * dims.hidden,
           float_at{dims.hidden, 1.0f, 77, 0.1f / std::sqrt(static_cast<float>(dims.hidden))});
}
void fill_tokens(bfloat16* to, std::int64_t tokens, shape dims, skew spread, std::uint32_t set) {
  tabulate(to, tokens * dims.hidden, element_at{dims, spread, set, 1000 + set, 1.7320508f});
}

}  // namespace switchyard::bench
