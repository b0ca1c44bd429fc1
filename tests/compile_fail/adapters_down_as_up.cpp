// expect: switchyard: a projection stands in the place of another one. gate_proj and up_proj, and their biases, are
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using layer =
    sy::layer<sy::shape{.hidden = 16, .intermediate = 16, .experts = 4, .top_k = 2}, sy::router::softmax_top_k,
              sy::capacity::dropless, sy::expert::adapters<2, 4, sy::expert::mlp<sy::relu>>>;

void wrong(layer::args& args, float const* w, float const* a, float const* b) {
  args.weights.up_proj = layer::out_proj(w, a, b);
}
