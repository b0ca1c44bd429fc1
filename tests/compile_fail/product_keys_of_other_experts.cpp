// expect: switchyard: router::product_keys addresses as many experts as there are pairs of its half keys.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using wrong = layer<shape{.hidden = 16, .intermediate = 1, .experts = 15, .top_k = 2}, router::product_keys<4>,
                    capacity::dropless, expert::value_row>;
void call(wrong::args const& args) { wrong::forward(args); }
