// expect: switchyard: router::restricted leaves experts out of the choice of a router whose scores are those of all
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::router::restricted<sy::router::with_expert_dropout<sy::router::sigma_moe, 1, 20>>::name;
