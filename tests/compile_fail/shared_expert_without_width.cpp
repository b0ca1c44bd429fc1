// expect: switchyard: expert::with_shared needs the inner width of the shared expert, at least 1.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::expert::with_shared<sy::expert::mlp<sy::relu>, 0>::name;
