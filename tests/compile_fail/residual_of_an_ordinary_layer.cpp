// expect: switchyard: this router takes nothing from .inputs: it decides by the tokens alone.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using layer_type = layer<shape{.hidden = 16, .intermediate = 32, .experts = 8, .top_k = 2}, router::softmax_top_k,
                         capacity::dropless, expert::mlp<relu>>;

void wrong(layer_type::args& args, float const* memory) { args.inputs.residual = layer_type::rows(memory, 1); }
