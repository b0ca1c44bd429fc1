// expect: switchyard: shape.top_k is larger than shape.experts. Lower top_k or add experts.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using wrong = sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 8, .top_k = 9},
                        sy::router::softmax_top_k, sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>>;

void use(wrong::args const& args) { wrong::forward(args); }
