// expect: switchyard: router::adaptive_clustering takes .inputs, and the router that it wraps
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::router::adaptive_clustering<sy::router::with_expert_dropout<sy::router::sigma_moe, 1, 20>>::name;
