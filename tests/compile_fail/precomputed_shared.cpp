// expect: switchyard: a router without logits, such as router::precomputed, has no router weight that router::shared could share.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::router::shared<sy::router::precomputed>::name;
