#include "steps.hpp"

#include <switchyard/core/workspace.hpp>

namespace switchyard::bench {

/// Rows to rows: the matrix products and the activation, for routed and shared experts.
void register_experts(std::size_t index) {
  at_layer(index, []<class Layer>() {
    register_step<Layer>(
        "experts",
        [](layer_memory<Layer>& memory) {
          using element = typename Layer::element;
          constexpr shape dims = Layer::dims;
          constexpr int shared_intermediate = Layer::expert_traits.shared_intermediate;
          auto&& [data, weights] = memory.next();
          std::int64_t const pairs = data.tokens * dims.top_k;
          carver split(memory.workspace().data());
          auto* const inner = split.take<element>(pairs * dims.intermediate);
          auto* const outer = split.take<float>(pairs * dims.hidden);
          forward_args<Layer> const args = data.args(weights);
          backend::detail::run_experts(args, memory.where(), data.the_plan(), data.first_block.data(),
                                       data.weight.data(), inner, outer);
          if constexpr (shared_intermediate > 0) {
            auto* const shared_inner = split.take<element>(data.tokens * shared_intermediate);
            auto* const shared_outer = split.take<float>(data.tokens * dims.hidden);
            backend::detail::run_shared_expert(args, memory.where(), shared_inner, shared_outer);
          }
          benchmark::DoNotOptimize(outer);
        },
        [](call_data<Layer> const& data) { return experts_work(data); });
  });
}

}  // namespace switchyard::bench
