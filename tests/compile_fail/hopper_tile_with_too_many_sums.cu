// expect: switchyard: the sums of this hopper_tile have no room in registers. Lower rows or columns, so that a warpgroup has at most 64 x 256 or 128 x 192 of them.
#include <switchyard/switchyard.cuh>

using namespace switchyard;
struct large {
  static constexpr std::string_view name = "large";
  template <class Layer>
  static constexpr hopper_tuning of() {
    constexpr hopper_tile tile{.rows = 256,
                               .columns = 256,
                               .stages = 3,
                               .schedule = hopper_schedule::cooperative,
                               .cluster = 2,
                               .group = 8,
                               .chosen_by = "nobody"};
    return {.few_rows = 8, .in = tile, .out = tile};
  }
};
using wrong = layer<shape{.hidden = 64, .intermediate = 64, .experts = 8, .top_k = 2}, router::softmax_top_k,
                    capacity::dropless, expert::gated_mlp<silu>, backend::hopper_with<large>, bfloat16>;
void call(wrong::args const& args) { wrong::forward(args); }
