// expect: switchyard: expert::mlp needs an activation of one value: a struct with a name and
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::expert::mlp<sy::clamped_swiglu<>>::name;
