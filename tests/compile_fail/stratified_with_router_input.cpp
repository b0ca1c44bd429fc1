// expect: switchyard: router::stratified takes .inputs, and the router that it wraps
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::router::stratified<sy::router::with_router_input<sy::router::softmax_top_k, 8>, 2, 2>::name;
