// expect: switchyard: this form of router::adaptive_clustering scales nothing.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
constexpr auto name = router::adaptive_clustering<router::switch_top1, clustering_traits{.alpha_numerator = 2}>::name;
