// expect: switchyard: router::adaptive_clustering reads its router weight as floats, for it also takes the lengths of its rows.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using clustered = sy::router::adaptive_clustering<sy::router::softmax_top_k>;
auto const wrong = sy::router::with_weight_element<clustered, sy::bfloat16>::name;
