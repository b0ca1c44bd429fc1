// expect: switchyard: expert::top_k_units chooses among the values between two products
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::expert::top_k_units<sy::expert::neuron<sy::relu>, 2>::name;
