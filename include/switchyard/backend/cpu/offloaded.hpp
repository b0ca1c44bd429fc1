#pragma once

#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/experts.hpp>
#include <switchyard/backend/cpu/steps.hpp>
#include <switchyard/backend/offloaded.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/dispatch/plan.hpp>
#include <switchyard/expert/feed_forward.hpp>
#include <switchyard/layer.hpp>
#include <switchyard/offload/cache.hpp>
#include <switchyard/offload/piece.hpp>

#include <cstdint>

/// Step 3 of `backend::cpu` where the experts come from a cache: those that are ready are computed together, then those that have come
/// meanwhile, until there are no more.
namespace switchyard::cpu {

template <>
struct experts_step<offload::from_cache<expert::two_products>> {
  using products = experts_step<expert::two_products>;

  template <class Layer>
  struct memory : products::template memory_of_experts<Layer, Layer::dims.experts> {
    float* packed;                                 // see `products_memory`
    std::int32_t *experts, *places, *begin, *end;  // [experts], of a batch
    constexpr memory(carver& from, std::int64_t tokens)
        : products::template memory_of_experts<Layer, Layer::dims.experts>(from, tokens) {
      constexpr int layer_experts = Layer::dims.experts;
      packed = from.take<float>(most_padded_rows(tokens * Layer::dims.top_k, layer_experts) *
                                row_floats(Layer::dims.hidden));
      for (std::int32_t** list : {&experts, &places, &begin, &end}) *list = from.take<std::int32_t>(layer_experts);
    }
    products_memory of_products() const {
      return {this->first_padded_row, this->first_item, this->activated, packed, this->results, {}};
    }
  };

  /// Waits for experts that are not resident. Throws `error` where one cannot be read, or the cache is cancelled: decisions are written then,
  /// the output is not.
  template <class Layer>
  static expert_results<typename Layer::element> run(forward_args<Layer> const& args, cpu_context const& context,
                                                     view<typename Layer::element const> const& tokens,
                                                     dispatch_plan const& plan, float const* combine_weights,
                                                     memory<Layer> const& m) {
    auto const& of_layer = args.weights.experts;
    std::size_t needed = 0;
    for (int e = 0; e < Layer::dims.experts; ++e) {
      if (plan.offsets[e] < plan.offsets[e + 1]) m.experts[needed++] = of_layer.first + e;
    }
    offload::resident_call call(of_layer, {m.experts, needed});
    auto const results = products::template results_of<Layer>(args, context, tokens, m);  // meanwhile experts come

    offload::placed_weights<Layer> const placed(of_layer.cache->memory().place(0), of_layer.cache->bytes_of_place());
    auto weights =
        products::template weights_of<Layer>(placed, [](auto const& operand) { return as_operand(operand); });
    if constexpr (Layer::expert_traits.kept_units > 0) {
      weights.units = unit_kernels_of<typename Layer::element>(context.instructions);
    }
    expert_activation activation = activation_of<typename Layer::expert>(context.instructions);
    if constexpr (Layer::expert_traits.ranking == unit_ranking::norm_compensated) {
      activation.unit_norms = args.weights.unit_norms;
    }
    auto const rows = products::template rows_of<Layer>(tokens, plan, combine_weights);
    while (int const count = call.take(m.experts, m.places)) {
      for (int i = 0; i < count; ++i) {
        m.experts[i] -= of_layer.first;
        m.begin[i] = plan.offsets[m.experts[i]];
        m.end[i] = plan.offsets[m.experts[i] + 1];
      }
      run_products(context, row_ranges{m.begin, m.end, count, m.places, m.experts}, rows, activation, weights,
                   m.of_products());
    }
    return results;
  }
};

}  // namespace switchyard::cpu
