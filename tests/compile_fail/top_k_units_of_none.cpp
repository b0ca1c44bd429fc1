// expect: switchyard: expert::top_k_units needs the number of inner values that it keeps, at least 1.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::expert::top_k_units<sy::expert::mlp<sy::relu>, 0>::name;
