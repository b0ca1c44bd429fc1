// expect: switchyard: router::predicted<router::published_prediction> has no capacity: what it puts in the place of zeros would stand for dropped pairs, too. Use capacity::dropless, or router::predicted<>.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using wrong = sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 2},
                        sy::router::predicted<sy::router::published_prediction>, sy::capacity::factor<5, 4>,
                        sy::expert::mlp<sy::relu>>;

void use(wrong::args const& args) { wrong::forward(args); }
