// expect: switchyard: router::without_stratum_norms changes a router::stratified, and this router is none.
#include <switchyard/switchyard.hpp>

constexpr auto name = switchyard::router::without_stratum_norms<switchyard::router::softmax_top_k>::name;
