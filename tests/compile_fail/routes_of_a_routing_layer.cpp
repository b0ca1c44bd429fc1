// expect: switchyard: this router takes nothing from .inputs: it decides by the tokens alone.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using layer = sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 2},
                        sy::router::softmax_top_k, sy::capacity::dropless, sy::expert::mlp<sy::relu>>;

void wrong(layer::args& args, float const* memory) { args.inputs = {.experts = nullptr, .weights = memory}; }
