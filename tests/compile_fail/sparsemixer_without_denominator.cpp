// expect: switchyard: router::sparsemixer takes the jitter as a fraction.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::router::sparsemixer<1, 0>::name;
