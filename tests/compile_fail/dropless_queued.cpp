// expect: switchyard: capacity::queued orders the queue for slots, and capacity::dropless has none.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::capacity::queued<sy::capacity::dropless, sy::queue::priority>::name;
