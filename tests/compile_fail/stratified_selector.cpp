// expect: Nor does one say what strata of router::nearest_centers or router::mlp_selector are. Take one of the two.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::router::stratified<sy::router::mlp_selector, 4, 4>::name;
