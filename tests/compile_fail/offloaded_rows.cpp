// expect: switchyard: backend::offloaded keeps the dense matrices of expert::mlp and expert::gated_mlp, and those of
#include <switchyard/offload.hpp>

namespace sy = switchyard;

using layer =
    sy::layer<sy::shape{.hidden = 8, .intermediate = 1, .experts = 16, .top_k = 4}, sy::router::product_keys<4, 2>,
              sy::capacity::dropless, sy::expert::value_row, sy::backend::offloaded<sy::backend::cpu>>;

auto const wrong = layer::workspace_bytes(1);
