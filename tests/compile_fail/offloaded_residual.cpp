// expect: switchyard: backend::offloaded keeps the dense matrices of expert::mlp and expert::gated_mlp, and those of
#include <switchyard/offload.hpp>

namespace sy = switchyard;

using layer = sy::layer<sy::shape{.hidden = 8, .intermediate = 8, .experts = 16, .top_k = 4}, sy::router::softmax_top_k,
                        sy::capacity::dropless, sy::expert::residual<sy::expert::mlp<sy::relu>>,
                        sy::backend::offloaded<sy::backend::cpu>>;

layer::weights const wrong{};
