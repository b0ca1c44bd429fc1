// expect: switchyard: router::restricted leaves experts out of the choice of a router whose scores are those of all
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::router::restricted<sy::router::sparsemixer<>>::name;
