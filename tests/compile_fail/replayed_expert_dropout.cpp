// expect: switchyard: router::replayed gives chosen experts the weights that a router makes of their scores
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::router::replayed<sy::router::with_expert_dropout<sy::router::sigma_moe, 1, 20>>::name;
