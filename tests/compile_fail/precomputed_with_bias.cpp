// expect: switchyard: a router without logits, such as router::precomputed, has nothing that router::with_bias could add to.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::router::with_bias<sy::router::precomputed>::name;
