// expect: switchyard: selection::grouped leaves fewer experts open than shape.top_k. Keep more groups or
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using wrong = sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 3},
                        sy::router::top_k<sy::router::scores::softmax,
                                          sy::router::selection::grouped<2, 1, sy::router::selection::group_score::max>,
                                          sy::router::weighting::sum>,
                        sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>>;

void use(wrong::args const& args) { wrong::forward(args); }
