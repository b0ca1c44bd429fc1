// expect: switchyard: router::on_input multiplies the token before a feed-forward expert.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using wrong = layer<shape{.hidden = 16, .intermediate = 1, .experts = 16, .top_k = 2},
                    router::on_input<router::product_keys<4>>, capacity::dropless, expert::value_row>;
void call(wrong::args const& args) { wrong::forward(args); }
