#include "backend/cuda/device.cuh"
#include "catch.hpp"
#include "support/compare.hpp"
#include "support/operands.hpp"

/// Weights that are no dense matrices, in the products of backend::hopper.
using namespace support;

TEMPLATE_TEST_CASE("on Hopper weights that are restored while they are read give what dense ones do",
                   "[gpu][hopper][operand]", sy::bfloat16, sy::half) {
  if (!has_hopper()) return;
  using list = typename operand_layers<sy::backend::hopper, TestType, 200, 72>::type;
  for (int tokens : {1, 150}) {  // with products of backend::cuda, and with Hopper's
    check_operands<list>(
        tokens, {}, [&]<class Layer>(auto const& got, auto const& expected, sy::forward_args<Layer> const& args) {
          CHECK(same_bits(got, expected));
          if constexpr (!sy::router::climbs<typename Layer::router::schedule>) {
            bool const grouped = sy::backend::hopper::products_of<Layer>(args) == sy::product_kind::grouped;
            CHECK(grouped == (tokens > 1));
          }
        });
  }
}
