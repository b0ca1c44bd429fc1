// expect: router::shared keeps one router weight for all layers
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using layer =
    sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 2},
              sy::router::shared<sy::router::softmax_top_k>, sy::capacity::dropless, sy::expert::mlp<sy::relu>>;

void wrong(float const* memory) { [[maybe_unused]] layer::weights const weights{.router = {.weight = memory}}; }
