// expect: switchyard: expert::low_rank changes the matrices of expert::mlp or expert::gated_mlp, plain, with biases,
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::expert::low_rank<sy::languages<3>, 4, sy::expert::neuron<sy::relu>>::name;
