// expect: switchyard: a router without logits, such as router::precomputed, takes its weights from .inputs, so that router::scaled cannot change them.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::router::scaled<sy::router::precomputed, 5, 2>::name;
