// expect: switchyard: this expert has no gate projection: expert::mlp computes down(activation(up(x))).
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using layer = sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 2},
                        sy::router::softmax_top_k, sy::capacity::dropless, sy::expert::mlp<sy::relu>>;

void wrong(layer::args& args, float const* memory) {
  args.weights.gate_proj = sy::weight_view<float>::packed(memory, 32, 16);
}
