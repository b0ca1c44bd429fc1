// expect: switchyard: every head of router::product_keys chooses as many experts.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using wrong = layer<shape{.hidden = 16, .intermediate = 1, .experts = 16, .top_k = 3}, router::product_keys<4, 2>,
                    capacity::dropless, expert::value_row>;
void call(wrong::args const& args) { wrong::forward(args); }
