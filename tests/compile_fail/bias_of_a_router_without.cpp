// expect: switchyard: this router adds no bias to the logits and none to what it chooses by, so that it would ignore one. Wrap it in router::with_bias, or give router::top_k a selection with selection::corrected.
#include <switchyard/switchyard.hpp>

using namespace switchyard;

using model = layer<shape{4, 4, 4, 2}, router::top_k_softmax, capacity::dropless, expert::gated_mlp<silu>>;

void run(model::args& args, float const* bias) { args.weights.router.bias = bias; }
