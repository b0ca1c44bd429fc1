// expect: switchyard: capacity::factor needs a Minimum of at least 0 and an Alignment of at least 1.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::capacity::factor<5, 4, sy::capacity::rounding::tutel, 0, 0>::name;
