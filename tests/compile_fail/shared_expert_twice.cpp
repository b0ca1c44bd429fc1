// expect: switchyard: expert::with_shared stands twice. For several shared experts give the sum of their
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::expert::with_shared<sy::expert::with_shared<sy::expert::mlp<sy::relu>, 8>, 8>::name;
