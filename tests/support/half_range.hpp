#pragma once

#include <cstdint>

#include "support/any_layer.hpp"

namespace support {

/// Rows between the products, and then results of experts, that are beyond half's range where the output is not, compared with
/// the reference. False where a layer's elements are not half or its router is not made for this.
bool check_half_range(any_layer const& layer, std::int64_t tokens);

}  // namespace support
