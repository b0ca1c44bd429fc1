#include "catch.hpp"
#include "device.cuh"
#include "support/compare.hpp"
#include "support/operands.hpp"

/// Weights that are no dense matrices, on the GPU. Stages of a tile have the same numbers whether they were copied or restored, so that
/// results have the same bits.
using namespace support;

TEMPLATE_TEST_CASE("on the GPU weights that are restored while they are read give what dense ones do", "[gpu][operand]",
                   float, sy::bfloat16) {
  if (!has_device()) return;
  using list = typename operand_layers<sy::backend::cuda, TestType, 72, 40>::type;
  for (int tokens : {1, 40, 150}) {  // each tile once
    check_operands<list>(tokens, {},
                         [](auto const& got, auto const& expected, auto const&) { CHECK(same_bits(got, expected)); });
  }
}
