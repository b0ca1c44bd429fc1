// expect: switchyard: router::adaptive_clustering reads its router weight as floats, for it also takes the lengths of its rows.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using stored = sy::router::with_weight_element<sy::router::softmax_top_k, sy::bfloat16>;
auto const wrong = sy::router::adaptive_clustering<stored>::name;
