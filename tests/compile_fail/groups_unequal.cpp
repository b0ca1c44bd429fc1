// expect: switchyard: selection::grouped needs groups of equal size. Choose Groups so that it divides
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using wrong = sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 2},
                        sy::router::top_k<sy::router::scores::softmax,
                                          sy::router::selection::grouped<3, 1, sy::router::selection::group_score::max>,
                                          sy::router::weighting::sum>,
                        sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>>;

int const width = wrong::dims.hidden;
