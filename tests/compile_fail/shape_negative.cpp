// expect: switchyard: shape.hidden is the width of a token. Set it to at least 1.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using wrong = sy::layer<sy::shape{.hidden = -16, .intermediate = 32, .experts = 4, .top_k = 2},
                        sy::router::softmax_top_k, sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>>;

void use(wrong::args const& args) { wrong::forward(args); }
