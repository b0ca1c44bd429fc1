// expect: switchyard: router::predicted<router::published_prediction> replaces zeros of the sum over a token's experts, and knows feed-forward experts alone: no shared expert, no output bias, no null experts and no rows of tables. Use router::predicted<>, or expert::mlp or gated_mlp.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using wrong =
    sy::layer<sy::shape{.hidden = 16, .intermediate = 1, .experts = 40, .top_k = 2},
              sy::router::predicted<sy::router::published_prediction>, sy::capacity::dropless, sy::expert::value_row>;

void use(wrong::args const& args) { wrong::forward(args); }
