// expect: switchyard: this router's query is the token itself, so it has no query projection.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using layer_type = layer<shape{.hidden = 16, .intermediate = 1, .experts = 16, .top_k = 2}, router::product_keys<4>,
                         capacity::dropless, expert::value_row>;
void wrong(layer_type::args& args, float const* memory) { args.weights.router.query = memory; }
