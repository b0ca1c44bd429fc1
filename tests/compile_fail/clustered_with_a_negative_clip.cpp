// expect: switchyard: router::adaptive_clustering clips at a fraction of the mean.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
constexpr auto name =
    router::adaptive_clustering<router::switch_top1, clustering_traits{.scales = true, .clip_numerator = -1}>::name;
