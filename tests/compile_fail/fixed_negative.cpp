// expect: switchyard: capacity::fixed needs a number of slots of at least 0.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::capacity::fixed<-1>::name;
