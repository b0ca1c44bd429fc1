// expect: switchyard: a projection stands in the place of another one. gate_proj and up_proj, and their biases, are
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using model = layer<shape{8, 8, 4, 2}, router::softmax_top_k, capacity::dropless, expert::with_bias<expert::mlp<relu>>>;

void wrong(model::args& args, float const* memory) { args.weights.bias.down = model::in_bias(memory); }
