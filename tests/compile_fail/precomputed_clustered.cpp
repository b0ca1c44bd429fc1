// expect: switchyard: router::precomputed makes no logits from tokens, so router::adaptive_clustering has nothing to scale.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
constexpr auto name = router::adaptive_clustering<router::precomputed>::name;
