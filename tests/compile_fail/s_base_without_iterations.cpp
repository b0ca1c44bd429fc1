// expect: switchyard: router::s_base balances by Sinkhorn's iterations, of which it needs at least 1
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::router::s_base<sy::sinkhorn_traits{.iterations = 0}>::name;
