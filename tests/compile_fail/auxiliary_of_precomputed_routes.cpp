// expect: switchyard: auxiliary values are made of logits, and this router makes none
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using layer = sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 2}, sy::router::precomputed,
                        sy::capacity::dropless, sy::expert::mlp<sy::relu>>;

void wrong(layer::args& args, float const* memory) {
  sy::auxiliary_values values;
  args.auxiliary = &values;
  (void)memory;
}
