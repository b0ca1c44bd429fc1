// expect: switchyard: the fifth argument of layer is no backend. A backend has a name,
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

struct my_backend {
  static constexpr std::string_view name = "my_backend";
  using context = int;
};

using wrong = sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 2},
                        sy::router::softmax_top_k, sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>, my_backend>;

void use(wrong::args const& args) { wrong::forward(args); }
