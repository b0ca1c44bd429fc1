// expect: switchyard: the third argument of layer is no capacity. A capacity has a name, traits and
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

struct my_capacity {
  static constexpr std::string_view name = "my_capacity";
  static constexpr sy::capacity_traits traits{};
  static constexpr int slots_per_expert(sy::shape, int tokens) { return tokens; }
};

using wrong = sy::layer<sy::shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 2},
                        sy::router::softmax_top_k, my_capacity, sy::expert::gated_mlp<sy::silu>>;

void use(wrong::args const& args) { wrong::forward(args); }
