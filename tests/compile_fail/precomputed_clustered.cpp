// expect: switchyard: a router without logits, such as router::precomputed, leaves router::adaptive_clustering nothing to scale.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
constexpr auto name = router::adaptive_clustering<router::precomputed>::name;
