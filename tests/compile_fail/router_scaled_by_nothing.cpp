// expect: switchyard: router::scaled takes a fraction. Give a denominator of at least 1.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::router::scaled<sy::router::softmax_top_k, 1, 0>::name;
