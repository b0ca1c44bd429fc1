// expect: switchyard: a row serves any number of tokens, so experts that are rows have no capacity to run out of.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using wrong = layer<shape{.hidden = 16, .intermediate = 1, .experts = 16, .top_k = 2}, router::product_keys<4>,
                    capacity::factor<1>, expert::value_row>;
void call(wrong::args const& args) { wrong::forward(args); }
