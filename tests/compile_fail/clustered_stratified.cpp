// expect: switchyard: router::adaptive_clustering around router::stratified
#include <switchyard/switchyard.hpp>

using namespace switchyard::router;
constexpr auto name = adaptive_clustering<stratified<softmax_top_k, 4, 4>>::name;
