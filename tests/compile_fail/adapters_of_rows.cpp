// expect: switchyard: expert::adapters goes around expert::mlp or expert::gated_mlp, plain, with biases, or with a
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::expert::adapters<2, 4, sy::expert::neuron<sy::relu>>::name;
