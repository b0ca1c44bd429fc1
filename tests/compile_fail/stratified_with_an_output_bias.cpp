// expect: switchyard: router::stratified makes several passes, and no publication says which of them an output bias belongs to.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using wrong = layer<shape{.hidden = 16, .intermediate = 32, .experts = 8, .top_k = 2},
                    router::stratified<router::softmax_top_k, 4, 4>, capacity::dropless,
                    expert::with_output_bias<expert::mlp<relu>>>;
constexpr auto bytes = wrong::workspace_bytes(1);
