// expect: switchyard: capacity::share_of_tokens takes a fraction.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::capacity::share_of_tokens<1, 0>::name;
