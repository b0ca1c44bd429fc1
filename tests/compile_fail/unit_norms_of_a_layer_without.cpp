// expect: switchyard: no norms are read where inner values are not ranked by them.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using layer = sy::layer<sy::shape{.hidden = 64, .intermediate = 32, .experts = 4, .top_k = 1}, sy::router::switch_top1,
                        sy::capacity::dropless, sy::expert::top_k_units<sy::expert::mlp<sy::relu>, 8>>;
void wrong(layer::args& args, float const* memory) { args.weights.unit_norms = memory; }
