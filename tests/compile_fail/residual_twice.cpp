// expect: switchyard: expert::residual stands twice. Add the residuals up, and store them once.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using once = expert::residual<expert::mlp<relu>>;

auto const wrong = expert::residual<once>::name;
