#include "steps.hpp"

namespace switchyard::bench {

/// Tokens to logits to expert ids and combine weights.
void register_route(std::size_t index) {
  at_layer(index, []<class Layer>() {
    if constexpr (!Layer::router_traits.precomputed) {
      register_step<Layer>(
          "route",
          [](layer_memory<Layer>& memory) {
            auto&& [data, weights] = memory.next();
            data.route(weights, memory.where());
            benchmark::DoNotOptimize(data.experts.data());
          },
          [](call_data<Layer> const& data) { return route_work<Layer>(data.tokens); });
    }
  });
}

}  // namespace switchyard::bench
