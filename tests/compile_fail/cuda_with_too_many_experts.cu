// expect: switchyard: backend::cuda keeps a block's logits in shared memory, which has no room for so many experts. Use fewer experts, or router::precomputed.
#include <switchyard/switchyard.cuh>

using namespace switchyard;
using too_many = layer<shape{.hidden = 8, .intermediate = 8, .experts = 8192, .top_k = 2}, router::softmax_top_k,
                       capacity::dropless, expert::mlp<relu>, backend::cuda>;
void call(too_many::args const& args) { too_many::forward(args); }
