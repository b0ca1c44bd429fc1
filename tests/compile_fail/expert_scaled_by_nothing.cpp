// expect: switchyard: expert::scaled takes a fraction. Give a denominator of at least 1.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::expert::scaled<sy::expert::mlp<sy::relu>, 1, 0>::name;
