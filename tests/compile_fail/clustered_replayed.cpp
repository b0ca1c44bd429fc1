// expect: switchyard: router::adaptive_clustering takes .inputs, and the router that it wraps
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::router::adaptive_clustering<sy::router::replayed<sy::router::softmax_top_k>>::name;
