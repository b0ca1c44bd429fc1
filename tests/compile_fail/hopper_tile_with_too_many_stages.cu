// expect: switchyard: the stages of a hopper_tile do not fit shared memory. Lower stages; hopper_stages says how many fit.
#include <switchyard/switchyard.cuh>

using namespace switchyard;
struct deep {
  static constexpr std::string_view name = "deep";
  template <class Layer>
  static constexpr hopper_tuning of() {
    constexpr hopper_tile tile{.rows = 128,
                               .columns = 256,
                               .stages = 5,
                               .schedule = hopper_schedule::cooperative,
                               .cluster = 2,
                               .group = 8,
                               .chosen_by = "nobody"};
    return {.few_rows = 8, .in = tile, .out = tile};
  }
};
using wrong = layer<shape{.hidden = 64, .intermediate = 64, .experts = 8, .top_k = 2}, router::softmax_top_k,
                    capacity::dropless, expert::gated_mlp<silu>, backend::hopper_with<deep>, bfloat16>;
void call(wrong::args const& args) { wrong::forward(args); }
