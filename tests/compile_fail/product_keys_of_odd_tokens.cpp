// expect: switchyard: router::query::token cuts a token in two halves.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using wrong = layer<shape{.hidden = 15, .intermediate = 1, .experts = 16, .top_k = 2}, router::product_keys<4>,
                    capacity::dropless, expert::value_row>;
void call(wrong::args const& args) { wrong::forward(args); }
