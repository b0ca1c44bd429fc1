// expect: switchyard: router::with_weight_element stores the router weight as float, switchyard::bfloat16 or switchyard::half.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::router::with_weight_element<sy::router::softmax_top_k, int>::name;
