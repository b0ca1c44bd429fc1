// expect: switchyard: this router adds no bias to the logits and none to what it chooses by
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using layer = sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 2}, sy::router::s_base<>,
                        sy::capacity::dropless, sy::expert::mlp<sy::relu>>;

void wrong(layer::args& args, float const* bias) { args.weights.router.correction_bias = bias; }
