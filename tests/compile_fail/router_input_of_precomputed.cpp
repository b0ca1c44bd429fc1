// expect: switchyard: a router without logits, such as router::precomputed, looks at no tokens, so router::with_router_input would change nothing.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::router::with_router_input<sy::router::precomputed, 8>::name;
