#pragma once

#include <switchyard/core/host_device.hpp>

#include <cstdint>

namespace switchyard {

/// ceil(a / b) for a of at least 0 and b of at least 1.
SWITCHYARD_HD constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return a / b + (a % b != 0); }

}  // namespace switchyard
