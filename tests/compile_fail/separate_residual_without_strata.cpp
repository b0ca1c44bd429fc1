// expect: switchyard: router::with_separate_residual changes a router::stratified, and this router is none.
#include <switchyard/switchyard.hpp>

constexpr auto name = switchyard::router::with_separate_residual<switchyard::router::softmax_top_k>::name;
