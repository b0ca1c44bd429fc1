// expect: switchyard: capacity::renormalised gives dropped pairs no weight, so on_drop cannot add the weighted
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong =
    sy::capacity::on_drop<sy::capacity::renormalised<sy::capacity::fixed<4>>, sy::dropped::weighted_input>::name;
