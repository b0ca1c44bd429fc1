// expect: switchyard: router::stratified inside another one. Give all sizes to one.
#include <switchyard/switchyard.hpp>

using namespace switchyard::router;
constexpr auto name = stratified<stratified<softmax_top_k, 4, 4>, 2, 2, 4>::name;
