// expect: switchyard: this layer has no shared expert. Wrap its expert in expert::with_shared, or leave .shared out.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using layer = sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 2},
                        sy::router::softmax_top_k, sy::capacity::dropless, sy::expert::mlp<sy::relu>>;

void wrong(layer::args& args, float const* memory) {
  args.weights.shared.up_proj = sy::weight_view<float>::packed(memory, 32, 16);
}
