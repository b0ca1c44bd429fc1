// expect: switchyard: this router takes nothing from .inputs
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using layer = sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 2}, sy::router::sigma_moe,
                        sy::capacity::dropless, sy::expert::mlp<sy::relu>>;

void wrong(layer::args& args, std::uint8_t const* functional) { args.inputs.allowed = functional; }
