#include <switchyard/presets.hpp>
#include <switchyard/switchyard.cuh>

#include <cstdio>

/// The kernels of one layer, for kernel_table.cmake: the compiler tells what they use, and this program what the compiler
/// does not know. The command line names the PRESET and its ELEMENT.
namespace {

using namespace switchyard;
namespace device = backend::device;
using measured = presets::PRESET<ELEMENT, backend::cuda>;

void print(char const* kernel, std::size_t dynamic_bytes) { std::printf("%s: %zu\n", kernel, dynamic_bytes); }

template <class Problem>
void print_products(char const* (&kernels)[3]) {
  print(kernels[0], device::product_layout<Problem, device::few_rows>::shared_bytes);
  print(kernels[1], device::product_layout<Problem, device::some_rows>::shared_bytes);
  print(kernels[2], device::product_layout<Problem, device::many_rows>::shared_bytes);
}

}  // namespace

int main(int count, char**) {
  if (count > 1) measured::forward({}, {});  // never; but its kernels are compiled
  using element = measured::element;
  using in = device::product_in<measured::expert, element, measured::dims.hidden, measured::dims.intermediate,
                                measured::router_traits.weighs_input>;
  using out = device::product_out<measured::expert, element, measured::dims.hidden, measured::dims.intermediate>;
  char const* ins[] = {"product_in few_rows", "product_in some_rows", "product_in many_rows"};
  char const* outs[] = {"product_out few_rows", "product_out some_rows", "product_out many_rows"};
  print("route_tokens 1", device::route_tile<measured, 1>::shared_bytes);
  print("route_tokens 2", device::route_tile<measured, 2>::shared_bytes);
  print_products<in>(ins);
  print_products<out>(outs);
  print("auxiliary_of_pass", 2 * measured::dims.experts * sizeof(double));
  std::printf("launches: %d\n", backend::cuda::launches<measured>());
}
