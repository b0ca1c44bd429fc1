// expect: switchyard: the projections of this expert have no biases. Wrap it in expert::with_bias, or leave .bias out.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using layer = sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 2},
                        sy::router::softmax_top_k, sy::capacity::dropless, sy::expert::mlp<sy::relu>>;

void wrong(layer::args& args, float const* memory) { args.weights.bias.up = sy::bias_view<float>::packed(memory, 32); }
