// expect: switchyard: a layer that routes by language has an expert for each path. Set shape.experts to language_pairs<Languages>::count with router::by_language_pair, to languages<Languages>::count with router::by_language.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using wrong = layer<shape{.hidden = 8, .intermediate = 8, .experts = 9, .top_k = 1}, router::by_language_pair<3>,
                    capacity::dropless, expert::mlp<relu>>;

void use(wrong::args const& args) { wrong::forward(args); }
