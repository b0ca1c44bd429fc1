// expect: switchyard: group_score::top2_sum needs two experts per group. Use group_score::max or fewer
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using wrong =
    sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 2},
              sy::router::top_k<sy::router::scores::softmax,
                                sy::router::selection::grouped<4, 2, sy::router::selection::group_score::top2_sum>,
                                sy::router::weighting::sum>,
              sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>>;

void use(wrong::args const& args) { wrong::forward(args); }
