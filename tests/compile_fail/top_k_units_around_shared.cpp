// expect: switchyard: expert::top_k_units goes with no shared expert
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::expert::top_k_units<sy::expert::with_shared<sy::expert::mlp<sy::relu>, 9>, 4>::name;
