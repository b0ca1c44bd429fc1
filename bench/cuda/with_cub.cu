#include "cub_plan.hpp"

#include "kernels.hpp"

#include <cub/device/device_for.cuh>
#include <cub/device/device_histogram.cuh>
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <vector>

namespace switchyard::bench {

namespace {

std::vector<std::int32_t> first_numbers(std::int64_t count) {
  std::vector<std::int32_t> result(static_cast<std::size_t>(count));
  std::iota(result.begin(), result.end(), 0);
  return result;
}

/// Tokens whose first features name their experts; where there are no experts, noise.
struct element_at {
  shape dims;
  skew spread;
  std::uint32_t set, seed;
  float scale;
  __device__ bfloat16 operator()(std::int64_t i) const {
    if (dims.experts > 0 && i % dims.hidden < dims.experts) {
      return bfloat16(
          naming_feature(i / dims.hidden, static_cast<int>(i % dims.hidden), dims.experts, dims.top_k, spread, set));
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

/// to[i] = value(i)
template <class T, class Value>
struct tabulated {
  T* to;
  Value value;
  __device__ void operator()(std::int64_t i) const { to[i] = value(i); }
};

/// As `thrust::tabulate`, whose header costs as much to compile as all of this file.
template <class T, class Value>
void tabulate(T* to, std::int64_t count, Value const& value) {
  check_cuda(cub::DeviceFor::Bulk(count, tabulated<T, Value>{to, value}));
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

cub_plan::cub_plan(std::int64_t pairs, int experts)
    : offsets(experts + 1),
      pair_of(pairs),
      expert_of(pairs),
      row_of(pairs),
      pairs_(pairs),
      experts_(experts),
      numbers_(first_numbers(pairs)),
      counts_(experts + 1) {
  std::size_t bytes[3] = {};
  int const count = static_cast<int>(pairs);
  std::int32_t const* const keys = expert_of.data();
  check_cuda(cub::DeviceRadixSort::SortPairs(nullptr, bytes[0], keys, expert_of.data(), numbers_.data(), pair_of.data(),
                                             count));
  check_cuda(
      cub::DeviceHistogram::HistogramEven(nullptr, bytes[1], keys, counts_.data(), experts + 2, 0, experts + 1, count));
  check_cuda(cub::DeviceScan::ExclusiveSum(nullptr, bytes[2], counts_.data(), offsets.data(), experts + 1));
  scratch_ = device_memory<std::byte>(static_cast<std::int64_t>(*std::max_element(bytes, bytes + 3)));
}

void cub_plan::enqueue(std::int32_t const* expert_of_pair, cudaStream_t stream) const {
  std::size_t bytes = scratch_.bytes();
  int const count = static_cast<int>(pairs_), bits = std::bit_width(static_cast<unsigned>(experts_));
  check_cuda(cub::DeviceRadixSort::SortPairs(scratch_.data(), bytes, expert_of_pair, expert_of.data(), numbers_.data(),
                                             pair_of.data(), count, 0, bits, stream));
  check_cuda(cub::DeviceHistogram::HistogramEven(scratch_.data(), bytes, expert_of_pair, counts_.data(), experts_ + 2,
                                                 0, experts_ + 1, count, stream));
  check_cuda(
      cub::DeviceScan::ExclusiveSum(scratch_.data(), bytes, counts_.data(), offsets.data(), experts_ + 1, stream));
  rows_of_pairs(pair_of.data(), pairs_, offsets.data(), experts_, row_of.data(), stream);
}

}  // namespace switchyard::bench
