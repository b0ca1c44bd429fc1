#include <switchyard/core/divide_up.hpp>

#include <cstdint>
#include <limits>

#include "catch.hpp"

TEST_CASE("a division rounds up, and does not overflow where the result fits", "[core]") {
  using switchyard::divide_up;
  static_assert(divide_up(0, 7) == 0);
  CHECK(divide_up(1, 7) == 1);
  CHECK(divide_up(7, 7) == 1);
  CHECK(divide_up(8, 7) == 2);
  CHECK(divide_up(5, 1) == 5);
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  CHECK(divide_up(most, 1) == most);
  CHECK(divide_up(most, 2) == most / 2 + 1);
  CHECK(divide_up(most, most) == 1);
  CHECK(divide_up(most - 1, most) == 1);
}
