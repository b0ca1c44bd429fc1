// expect: switchyard: a router without logits, such as router::precomputed, has the routes of one pass, and router::stratified decides after each pass
#include <switchyard/switchyard.hpp>

constexpr auto name = switchyard::router::stratified<switchyard::router::precomputed, 4, 4>::name;
