// expect: switchyard: an expert that is a row has an inner width of 1.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using wrong = layer<shape{.hidden = 16, .intermediate = 2, .experts = 16, .top_k = 2}, router::product_keys<4>,
                    capacity::dropless, expert::value_row>;
void call(wrong::args const& args) { wrong::forward(args); }
