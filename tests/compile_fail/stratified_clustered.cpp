// expect: switchyard: router::stratified around router::adaptive_clustering
#include <switchyard/switchyard.hpp>

using namespace switchyard::router;
constexpr auto name = stratified<adaptive_clustering<softmax_top_k>, 4, 4>::name;
