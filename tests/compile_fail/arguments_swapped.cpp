// expect: switchyard: the second argument of layer is no router. A router has a name, and inherits router::by_logits and has select
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using wrong = sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 2}, sy::capacity::dropless,
                        sy::router::softmax_top_k, sy::expert::gated_mlp<sy::silu>>;

void use(wrong::args const& args) { wrong::forward(args); }
