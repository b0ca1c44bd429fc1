// expect: switchyard: router::sparsemixer sends a token to two experts. Set shape.top_k to 2
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using wrong = layer<shape{.hidden = 16, .intermediate = 32, .experts = 3, .top_k = 2},
                    router::stratified<router::sparsemixer<>, 2, 1>, capacity::dropless, expert::mlp<relu>>;
void call(wrong::args const& args) { wrong::forward(args); }
