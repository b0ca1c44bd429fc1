// expect: switchyard: this router makes no logits: it takes its experts from .inputs, so there is no router weight to set
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using layer = sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 2}, sy::router::precomputed,
                        sy::capacity::dropless, sy::expert::mlp<sy::relu>>;

void wrong(layer::args& args, float const* memory) { args.weights.router = {.weight = memory}; }
