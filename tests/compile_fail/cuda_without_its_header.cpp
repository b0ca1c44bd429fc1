// expect: switchyard: the fifth argument of layer is no backend, or its header is not included.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using on_a_gpu = layer<shape{.hidden = 8, .intermediate = 8, .experts = 8, .top_k = 2}, router::softmax_top_k,
                       capacity::dropless, expert::mlp<relu>, backend::cuda>;
void call(on_a_gpu::args const& args) { on_a_gpu::forward(args); }
