// expect: switchyard: capacity::on_drop says what a dropped pair adds, and capacity::dropless drops none.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::capacity::on_drop<sy::capacity::dropless, sy::dropped::input>::name;
