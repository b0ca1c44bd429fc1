// expect: switchyard: expert::residual restores the matrices of expert::mlp or expert::gated_mlp, plain, with biases, or
#include <switchyard/switchyard.hpp>

using namespace switchyard;

auto const wrong = expert::residual<expert::value_row>::name;
