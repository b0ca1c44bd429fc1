// expect: switchyard: router::switch_top1 sends a token to one expert. Set shape.top_k to 1, or use
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using wrong = sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 2}, sy::router::switch_top1,
                        sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>>;

auto const bytes = wrong::workspace_bytes(1);
