#include "cpu.hpp"

#include "methods.hpp"

#include <algorithm>

namespace switchyard::bench {

namespace {

template <class Layer>
void forward(gpu_memory const& memory) {
  Layer::forward(args_of<Layer>(memory));
}

template <shape Dims>
void add(gpu_methods& to) {
  using of = methods<Dims, backend::cpu>;
  to.on_cpu = {&forward<typename of::base>, &forward<typename of::shared>, &forward<typename of::clustered>,
               &forward<typename of::stratified>};
  to.cpu_workspace_bytes = [](std::int64_t tokens) {
    return std::max({of::base::workspace_bytes(tokens), of::shared::workspace_bytes(tokens),
                     of::clustered::workspace_bytes(tokens), of::stratified::workspace_bytes(tokens)});
  };
}

}  // namespace

void add_cpu_methods(gpu_methods& to) {
  if (to.small) {
    add<small_shape>(to);
  } else {
    add<olmoe_shape>(to);
  }
}

}  // namespace switchyard::bench
