// expect: switchyard: expert::adapters needs the rank of its matrices, at least 1.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::expert::adapters<2, 0, sy::expert::mlp<sy::relu>>::name;
