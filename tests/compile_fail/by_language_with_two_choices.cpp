// expect: switchyard: a token has one path of languages. Set shape.top_k to 1.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using wrong = layer<shape{.hidden = 8, .intermediate = 8, .experts = languages<3>::count, .top_k = 2},
                    router::by_language<3>, capacity::dropless, expert::mlp<relu>>;

void use(wrong::args const& args) { wrong::forward(args); }
