#pragma once

#include "../erase.cuh"

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

/// The two products of Hopper with other tiles than the default ones: what `default_hopper_tuning` is to be chosen from.
namespace switchyard::bench {

using enum hopper_schedule;
template <int Rows, int Columns, hopper_schedule Schedule, int Cluster = 2, int Group = 8>
using tiling = hopper::grouped_tiling<Rows, Columns, hopper_stages(Rows, Columns, 512, 7), Schedule, Cluster, Group>;

template <class... Tilings>
struct tilings {};
using for_both = tilings<tiling<128, 256, cooperative>, tiling<128, 256, cooperative, 1>,
                         tiling<128, 256, cooperative, 2, 4>, tiling<128, 256, cooperative, 2, 16>,
                         tiling<256, 128, cooperative>, tiling<128, 128, ping_pong>, tiling<64, 256, ping_pong>>;
/// Gated columns are cut in two, so that 192 are for the second product alone.
using for_second = tilings<tiling<128, 192, cooperative>, tiling<128, 192, ping_pong>>;

template <class Layer, class Problem, class Tiling, bool First>
void enqueue_product(gpu_memory const& memory, cudaStream_t stream) {
  namespace device = switchyard::hopper;
  constexpr bool adjusted = First ? device::in_is_adjusted<Layer> : device::out_is_adjusted<Layer>;
  auto const both = backend::hopper::products_of_call(args_of<Layer>(memory));
  device::enqueue_grouped<Problem, adjusted, Tiling, device::weight_order::depth>(
      cuda_context{.stream = stream}, "product", First ? both.in : both.out, 1 << 16);
}

template <class Tiling>
std::string name_of_tiling() {
  return std::to_string(Tiling::rows) + "x" + std::to_string(Tiling::columns) + "x" + std::to_string(Tiling::stages) +
         (Tiling::cooperative ? ":cooperative" : ":ping_pong") + ":cluster" + std::to_string(Tiling::cluster) +
         ":group" + std::to_string(Tiling::group);
}

template <class Layer, bool First, class... Tilings>
void add(std::vector<gpu_tiling>& to, tilings<Tilings...>) {
  using problem = std::conditional_t<First, cuda::in_product<Layer>, cuda::out_product<Layer>>;
  (to.push_back(
       {(First ? "in:" : "out:") + name_of_tiling<Tilings>(), First, &enqueue_product<Layer, problem, Tilings, First>}),
   ...);
}

/// Compiles a layer's products: for the initialiser of a static object.
template <class Layer>
bool compile_tilings(bool small = false) {
  gpu_tilings result;
  result.small = small;
  result.layer = erase_planning<Layer>();
  add<Layer, true>(result.products, for_both{});
  add<Layer, false>(result.products, for_both{});
  add<Layer, false>(result.products, for_second{});
  compiled_tilings().push_back(result);
  return true;
}

}  // namespace switchyard::bench
