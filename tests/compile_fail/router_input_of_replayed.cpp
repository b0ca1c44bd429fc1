// expect: switchyard: router::with_router_input takes .inputs for the router's rows, and the router that it wraps takes them, too.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::router::with_router_input<sy::router::replayed<sy::router::softmax_top_k>, 8>::name;
