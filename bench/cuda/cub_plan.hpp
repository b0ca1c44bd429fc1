#pragma once

#include "device.hpp"

#include <cstddef>
#include <cstdint>

namespace switchyard::bench {

/// The dispatch plan that a user of CUB makes: pairs sorted by expert, how many each expert has, and where they begin.
class cub_plan {
 public:
  cub_plan(std::int64_t pairs, int experts);

  /// `expert_of_pair`: [pairs]; `experts` for a pair that was dropped.
  void enqueue(std::int32_t const* expert_of_pair, cudaStream_t stream) const;

  device_memory<std::int32_t> offsets;    // [experts + 1]
  device_memory<std::int32_t> pair_of;    // [pairs], by rows; dropped ones last
  device_memory<std::int32_t> expert_of;  // [pairs], of the row
  device_memory<std::int32_t> row_of;     // [pairs], -1 where dropped

 private:
  std::int64_t pairs_;
  int experts_;
  device_memory<std::int32_t> numbers_;  // 0, 1, 2, ...
  device_memory<std::int32_t> counts_;   // [experts + 1], of dropped ones last
  device_memory<std::byte> scratch_;
};

}  // namespace switchyard::bench
