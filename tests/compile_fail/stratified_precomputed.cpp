// expect: switchyard: router::precomputed has the routes of one pass
#include <switchyard/switchyard.hpp>

constexpr auto name = switchyard::router::stratified<switchyard::router::precomputed, 4, 4>::name;
