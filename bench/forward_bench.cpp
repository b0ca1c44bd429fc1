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
        [](call_data<Layer> const& data) {
          constexpr expert_traits traits = Layer::expert_traits;
          constexpr double expert = (traits.input_projections() + 1.0) * Layer::dims.hidden * Layer::dims.intermediate;
          layer_costs const least = costs<Layer>(data.tokens, data.experts_used);
          double const dropped_pairs = static_cast<double>(data.tokens * Layer::dims.top_k - data.rows);
          return work{least.flops - 2.0 * dropped_pairs * expert, least.bytes};
        });
  });
}

}  // namespace switchyard::bench
