// expect: switchyard: the fourth argument of layer is no expert. An expert has a name and an activation, and inherits expert::feed_forward
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

struct my_expert {
  static constexpr std::string_view name = "my_expert";
  static constexpr sy::expert_traits traits{.gated = true};
};

using wrong = sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 2},
                        sy::router::softmax_top_k, sy::capacity::dropless, my_expert>;

void use(wrong::args const& args) { wrong::forward(args); }
