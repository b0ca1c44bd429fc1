#include "steps.hpp"

namespace switchyard::bench {

/// Expert ids to rows. There are no products, and what it reads comes from a cache, as after routing.
void register_dispatch(std::size_t index) {
  at_layer(index, []<class Layer>() {
    register_step<Layer>(
        "dispatch",
        [](layer_memory<Layer>& memory) {
          auto&& [data, weights] = memory.next();
          data.plan();
          benchmark::DoNotOptimize(data.row_of.data());
        },
        [](call_data<Layer> const& data) {
          double const pairs = static_cast<double>(data.tokens * Layer::dims.top_k);
          return work{0.0, pairs * 13.0};  // reads an id; writes a row, a pair and whether it is dropped
        });
  });
}

}  // namespace switchyard::bench
