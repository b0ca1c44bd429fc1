// expect: switchyard: a router that chooses by logits makes one for every row of the table.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using wrong = layer<shape{.hidden = 16, .intermediate = 1, .experts = 16, .top_k = 2}, router::softmax_top_k,
                    capacity::dropless, expert::value_row>;
void call(wrong::args const& args) { wrong::forward(args); }
