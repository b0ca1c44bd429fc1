// expect: switchyard: expert::with_output_gate is for experts that are rows
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using wrong = layer<shape{.hidden = 16, .intermediate = 1, .experts = 16, .top_k = 2}, router::product_keys<4>,
                    capacity::dropless, expert::with_output_gate<expert::mlp<relu>>>;
void call(wrong::args const& args) { wrong::forward(args); }
