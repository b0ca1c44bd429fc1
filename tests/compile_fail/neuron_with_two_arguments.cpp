// expect: switchyard: expert::neuron needs an activation of one value
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using wrong = layer<shape{.hidden = 16, .intermediate = 1, .experts = 16, .top_k = 2}, router::product_keys<4>,
                    capacity::dropless, expert::neuron<clamped_swiglu<>>>;
void call(wrong::args const& args) { wrong::forward(args); }
