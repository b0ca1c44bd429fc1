// expect: switchyard: the router and expert::low_rank go by other languages. language_pairs<Languages> goes with router::by_language_pair<Languages>, languages<Languages> with router::by_language<Languages>.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
// Four paths in both.
using wrong = layer<shape{.hidden = 8, .intermediate = 8, .experts = 4, .top_k = 1}, router::by_language_pair<1>,
                    capacity::dropless, expert::low_rank<languages<3>, 4, expert::mlp<relu>>>;

void use(wrong::args const& args) { wrong::forward(args); }
