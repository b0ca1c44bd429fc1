// expect: switchyard: router::nearest_centers and router::mlp_selector make their logits of a token's direction by themselves
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using layer =
    sy::layer<sy::shape{.hidden = 16, .intermediate = 4, .experts = 8, .top_k = 2},
              sy::router::with_bias<sy::router::mlp_selector>, sy::capacity::dropless, sy::expert::mlp<sy::relu>>;

std::size_t wrong = layer::workspace_bytes(1);
