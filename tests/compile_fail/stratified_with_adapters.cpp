// expect: switchyard: expert::adapters in a layer of router::stratified
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using layer = sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 2},
                        sy::router::stratified<sy::router::softmax_top_k, 2, 2>, sy::capacity::dropless,
                        sy::expert::adapters<2, 4, sy::expert::mlp<sy::relu>>>;

void wrong(layer::args const& args) { layer::forward(args); }
