// expect: switchyard: router::with_expert_dropout hides experts from the choice of a router whose scores see no mask
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::router::with_expert_dropout<sy::router::scaled<sy::router::sigma_moe, 2>, 1, 20>::name;
