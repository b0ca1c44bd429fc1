// expect: switchyard: clamped_swiglu takes fractions. Give denominators of at least 1.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::clamped_swiglu<7, 0>::name;
