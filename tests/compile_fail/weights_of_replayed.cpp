// expect: switchyard: router::replayed takes the experts from .inputs and makes the weights of this call's logits.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using layer =
    sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 2},
              sy::router::replayed<sy::router::softmax_top_k>, sy::capacity::dropless, sy::expert::mlp<sy::relu>>;

void wrong(layer::args& args, float const* memory) { args.inputs.weights = memory; }
