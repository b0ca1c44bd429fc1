// expect: switchyard: a layer of expert::low_rank has an expert for each path. Set shape.experts to language_pairs<Languages>::count or languages<Languages>::count.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using wrong = layer<shape{.hidden = 8, .intermediate = 8, .experts = 3, .top_k = 1}, router::precomputed,
                    capacity::dropless, expert::low_rank<languages<3>, 4, expert::mlp<relu>>>;

void use(wrong::args const& args) { wrong::forward(args); }
