#include <switchyard/switchyard.cuh>

#include "backend/cuda/device.cuh"
#include "catch.hpp"
#include "support/row_layers.hpp"

/// Experts that are rows have no products of Hopper's own: its backend runs them by the kernels of every GPU.
namespace sy = switchyard;
using namespace support;

TEST_CASE("on Hopper rows chosen by product keys are those of all sums sorted", "[gpu]") {
  if (!has_hopper()) return;
  using layer = sy::layer<sy::shape{40, 1, 81, 10}, sy::router::product_keys<9, 2, sy::router::query::projected<8>>,
                          sy::capacity::dropless, sy::expert::neuron<sy::gelu>, sy::backend::hopper, sy::bfloat16>;
  row_problem const p = random_rows<layer>(33, 3);
  check_rows(p, run_rows<layer>(p), 1e-2);
}
