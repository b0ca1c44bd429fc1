// expect: switchyard: the weights of routed experts are in the cache of backend::offloaded. Set
#include <switchyard/offload.hpp>

namespace sy = switchyard;

using layer = sy::layer<sy::shape{.hidden = 8, .intermediate = 8, .experts = 4, .top_k = 2}, sy::router::softmax_top_k,
                        sy::capacity::dropless, sy::expert::mlp<sy::relu>, sy::backend::offloaded<sy::backend::cpu>>;

layer::weights wrong(float const* up) { return {.router = {}, .up_proj = layer::in_proj(up)}; }
