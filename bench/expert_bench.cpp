#include "steps.hpp"

#include <switchyard/core/workspace.hpp>

namespace switchyard::bench {

/// Rows to rows: the matrix products and the activation, for routed and shared experts.
void register_experts(std::size_t index) {
  at_layer(index, []<class Layer>() {
    register_step<Layer>(
        "experts",
        [](layer_memory<Layer>& memory) {
          constexpr shape dims = Layer::dims;
          constexpr int shared_intermediate = Layer::expert_traits.shared_intermediate;
          auto&& [data, weights] = memory.next();
          carver split(memory.workspace().data());
          auto const scratch = [&](std::int64_t rows, int experts, int intermediate) {
            std::int64_t const places = backend::detail::most_places(rows, experts);
            return backend::detail::products_scratch{
                data.first_place.data(), data.first_item.data(),
                split.take<float>(places * backend::detail::row_floats(intermediate)),
                split.take<float>(places * backend::detail::row_floats(dims.hidden))};
          };
          forward_args<Layer> const args = data.args(weights);
          auto const routed = scratch(data.tokens * dims.top_k, dims.experts, dims.intermediate);
          backend::detail::run_experts(args, memory.where(), data.the_plan(), data.weight.data(), routed);
          if constexpr (shared_intermediate > 0) {
            backend::detail::run_shared_expert(args, memory.where(), scratch(data.tokens, 1, shared_intermediate));
          }
          benchmark::DoNotOptimize(routed.outer);
        },
        [](call_data<Layer> const& data) { return experts_work(data); });
  });
}

}  // namespace switchyard::bench
