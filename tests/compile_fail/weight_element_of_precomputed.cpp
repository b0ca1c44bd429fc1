// expect: switchyard: a router without logits, such as router::precomputed, has no router weight that router::with_weight_element could store otherwise.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::router::with_weight_element<sy::router::precomputed, sy::bfloat16>::name;
