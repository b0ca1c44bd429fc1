// expect: switchyard: tokens and weights are stored as float, switchyard::bfloat16 or switchyard::half.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using wrong =
    sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 2}, sy::router::softmax_top_k,
              sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>, sy::backend::cpu, int>;

void use(wrong::args const& args) { wrong::forward(args); }
