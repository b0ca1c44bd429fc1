// expect: switchyard: router::adaptive_clustering inside another one. Wrap the base router once.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using once = router::adaptive_clustering<router::switch_top1>;
constexpr auto name = router::adaptive_clustering<once, router::vision>::name;
