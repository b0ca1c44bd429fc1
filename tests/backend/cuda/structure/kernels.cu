#include <switchyard/presets.hpp>
#include <switchyard/switchyard.cuh>

#include <cstdio>
#include <type_traits>

/// The kernels of one layer, for kernel_table.cmake: the compiler tells what they use, and this program what the compiler
/// does not know. The command line names the PRESET, its ELEMENT and its BACKEND.
namespace {

using namespace switchyard;
namespace device = cuda;
using measured = presets::PRESET<ELEMENT, backend::BACKEND>;

void print(char const* kernel, std::size_t dynamic_bytes) { std::printf("%s: %zu\n", kernel, dynamic_bytes); }

template <class Problem>
void print_products(char const* (&kernels)[3]) {
  print(kernels[0], device::product_layout<Problem, device::few_rows>::shared_bytes);
  print(kernels[1], device::product_layout<Problem, device::some_rows>::shared_bytes);
  print(kernels[2], device::product_layout<Problem, device::many_rows>::shared_bytes);
}

[[maybe_unused]] void print_grouped(char const* name, hopper_tile tile) {
  for (char const* order : {"depth", "feature", "feature_pairs"}) {
    std::printf(
        "%s grouped %s: %d\n", name, order,
        1024 + tile.stages * ((tile.rows + tile.columns) * device::line_bytes + 16) + 8 * (measured::dims.experts + 1));
  }
}

}  // namespace

int main(int count, char**) {
  if (count > 1) measured::forward({}, {});  // never; but its kernels are compiled
  using in = device::in_product<measured>;
  using out = device::out_product<measured>;
  char const* ins[] = {"product_in few_rows", "product_in some_rows", "product_in many_rows"};
  char const* outs[] = {"product_out few_rows", "product_out some_rows", "product_out many_rows"};
  print("route_tokens 1", device::route_tile<device::layer_routing<measured>, 1>::shared_bytes);
  print("route_tokens 2", device::route_tile<device::layer_routing<measured>, 2>::shared_bytes);
  if constexpr (std::is_same_v<measured::backend, backend::hopper> && hopper::has_grouped_products<measured>()) {
    constexpr hopper_tuning tuning = default_hopper_tuning::of<measured>();
    print_grouped("product_in", tuning.in);
    print_grouped("product_out", tuning.out);
  }
  print_products<in>(ins);
  print_products<out>(outs);
  print("auxiliary_of_pass", 2 * measured::all_experts * sizeof(double));
  measured::args args{};  // of a call of one token: which memory it has does not matter
  args.tokens.rows = 1;
  std::printf("launches: %d\n", backend::BACKEND::launches<measured>(args));
}
