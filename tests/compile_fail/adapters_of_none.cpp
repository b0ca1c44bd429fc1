// expect: switchyard: expert::adapters needs the number of adapters, at least 1.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::expert::adapters<0, 4, sy::expert::mlp<sy::relu>>::name;
