// expect: switchyard: expert::top_k_units keeps fewer than shape.intermediate units.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using layer =
    sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 2}, sy::router::softmax_top_k,
              sy::capacity::dropless, sy::expert::top_k_units<sy::expert::mlp<sy::relu>, 32>>;

void wrong(layer::args const& args) { layer::forward(args); }
