// expect: switchyard: router::with_expert_dropout takes a probability as a fraction, at least 0 and less than 1
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::router::with_expert_dropout<sy::router::sigma_moe, 1, 1>::name;
