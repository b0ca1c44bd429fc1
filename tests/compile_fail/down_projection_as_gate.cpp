// expect: switchyard: a projection stands in the place of another one. gate_proj and up_proj, and their biases, are
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using model = layer<shape{8, 8, 4, 2}, router::softmax_top_k, capacity::dropless, expert::gated_mlp<silu>>;

void wrong(model::args& args, float const* memory) { args.weights.gate_proj = model::out_proj(memory); }
