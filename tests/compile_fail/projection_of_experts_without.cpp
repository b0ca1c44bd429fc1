// expect: switchyard: nothing projects the output of these experts. Wrap the expert in expert::with_gated_projection, or leave
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using model = layer<shape{8, 1, 9, 2}, router::product_keys<3>, capacity::dropless, expert::value_row>;

void wrong(model::args& args, float const* memory) { args.weights.projection = memory; }
