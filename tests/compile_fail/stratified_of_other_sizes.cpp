// expect: switchyard: the strata of router::stratified have together not as many experts as the layer.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using wrong = layer<shape{.hidden = 16, .intermediate = 32, .experts = 8, .top_k = 2},
                    router::stratified<router::softmax_top_k, 4, 3>, capacity::dropless, expert::mlp<relu>>;
constexpr auto bytes = wrong::workspace_bytes(1);
