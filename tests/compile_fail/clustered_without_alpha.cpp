// expect: switchyard: router::adaptive_clustering divides by a deviation plus alpha, and a deviation may be zero.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
constexpr auto name =
    router::adaptive_clustering<router::switch_top1, clustering_traits{.scales = true, .alpha_numerator = 0}>::name;
