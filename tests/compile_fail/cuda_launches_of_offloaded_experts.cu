// expect: switchyard: which kernels a call of backend::offloaded has depends on which experts are resident.
#include <switchyard/offload.cuh>

using namespace switchyard;
using layer_type = layer<shape{.hidden = 16, .intermediate = 32, .experts = 8, .top_k = 2}, router::softmax_top_k,
                         capacity::dropless, expert::mlp<relu>, backend::offloaded<backend::cuda>>;
int wrong(layer_type::args const& args) { return layer_type::backend::launches<layer_type>(args); }
