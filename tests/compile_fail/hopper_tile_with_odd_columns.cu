// expect: switchyard: a hopper_tile has 64, 128, 192 or 256 columns. Set columns to one of them.
#include <switchyard/switchyard.cuh>

using namespace switchyard;
struct odd {
  static constexpr std::string_view name = "odd";
  template <class Layer>
  static constexpr hopper_tuning of() {
    constexpr hopper_tile tile{.rows = 128,
                               .columns = 160,
                               .stages = 3,
                               .schedule = hopper_schedule::cooperative,
                               .cluster = 2,
                               .group = 8,
                               .chosen_by = "nobody"};
    return {.few_rows = 8, .in = tile, .out = tile};
  }
};
using wrong = layer<shape{.hidden = 64, .intermediate = 64, .experts = 8, .top_k = 2}, router::softmax_top_k,
                    capacity::dropless, expert::gated_mlp<silu>, backend::hopper_with<odd>, bfloat16>;
void call(wrong::args const& args) { wrong::forward(args); }
