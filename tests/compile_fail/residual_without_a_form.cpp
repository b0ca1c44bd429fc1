// expect: switchyard: the second argument of expert::residual says what residuals are stored as. Give
#include <switchyard/switchyard.hpp>

using namespace switchyard;

auto const wrong = expert::residual<expert::mlp<relu>, relu>::name;
