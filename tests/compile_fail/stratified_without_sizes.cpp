// expect: switchyard: router::stratified takes the sizes of its strata, each of at least 1 expert
#include <switchyard/switchyard.hpp>

constexpr auto name = switchyard::router::stratified<switchyard::router::softmax_top_k>::name;
