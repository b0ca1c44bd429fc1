#include "cub_plan.hpp"

#include "kernels.hpp"

#include <cub/device/device_histogram.cuh>
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include <algorithm>
#include <bit>
#include <numeric>
#include <vector>

namespace switchyard::bench {

namespace {

std::vector<std::int32_t> first_numbers(std::int64_t count) {
  std::vector<std::int32_t> result(static_cast<std::size_t>(count));
  std::iota(result.begin(), result.end(), 0);
  return result;
}

}  // namespace

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
  check_cuda(cub::DeviceScan::ExclusiveSum(scratch_.data(), bytes, counts_.data(), offsets.data(), experts_ + 1,
                                           stream));
  rows_of_pairs(pair_of.data(), pairs_, offsets.data(), experts_, row_of.data(), stream);
}

}  // namespace switchyard::bench
