// expect: switchyard: capacity::renormalised acts after dropping, and capacity::dropless drops nothing.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::capacity::renormalised<sy::capacity::dropless>::name;
