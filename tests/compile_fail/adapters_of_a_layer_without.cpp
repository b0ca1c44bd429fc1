// expect: switchyard: the experts of this layer take no inputs but the tokens. Wrap them in expert::adapters, or
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using layer = sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 2},
                        sy::router::softmax_top_k, sy::capacity::dropless, sy::expert::mlp<sy::relu>>;

void wrong(layer::args& args, int const* ids) { args.expert_inputs.adapter = ids; }
