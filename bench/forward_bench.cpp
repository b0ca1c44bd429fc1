#include "steps.hpp"

namespace switchyard::bench {

/// The whole layer, as a user calls it.
void register_forward(std::size_t index) {
  at_layer(index, []<class Layer>() {
    register_step<Layer>(
        "forward",
        [](layer_memory<Layer>& memory) {
          auto&& [data, weights] = memory.next();
          forward_args<Layer> args = data.args(weights);
          args.output = memory.output();
          args.workspace = memory.workspace();
          Layer::forward(args, memory.where());
          benchmark::DoNotOptimize(args.output.data);
        },
        [](call_data<Layer> const& data) { return forward_work<Layer>(data.tokens, data.rows, data.experts_used); });
  });
}

}  // namespace switchyard::bench
