// expect: switchyard: shape.intermediate is the inner width of an expert. Set it to at least 1.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using wrong = sy::layer<sy::shape{.hidden = 16, .experts = 4, .top_k = 2}, sy::router::softmax_top_k,
                        sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>>;

void use(wrong::args const& args) { wrong::forward(args); }
