#pragma once

#include <switchyard/capacity/capacity_policy.hpp>
#include <switchyard/core/host_device.hpp>

namespace switchyard::capacity {

/// Every expert takes every token that chose it. No padding rows, nothing dropped.
struct dropless {
  static constexpr std::string_view name = "dropless";
  static constexpr capacity_traits traits{.drops = false};
  SWITCHYARD_HD static constexpr std::int64_t slots_per_expert(shape, std::int64_t tokens) { return tokens; }
};

static_assert(capacity_policy<dropless>);

}  // namespace switchyard::capacity
