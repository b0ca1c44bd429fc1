// A right use. It has to compile, so that the wrong uses beside it fail for their own reason only.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using right = sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 2},
                        sy::router::softmax_top_k, sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>>;

void use(right::args const& args) { right::forward(args); }
