// expect: switchyard: expert::top_k_units stands twice.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::expert::top_k_units<sy::expert::top_k_units<sy::expert::mlp<sy::relu>, 9>, 4>::name;
