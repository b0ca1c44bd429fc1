// expect: switchyard: router::stratified around router::s_base: no publication says
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::router::stratified<sy::router::s_base<>, 4, 4>::name;
