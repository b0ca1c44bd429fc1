// expect: switchyard: router::replayed gives chosen experts the weights that a router makes of their scores
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::router::replayed<sy::router::sparsemixer<>>::name;
