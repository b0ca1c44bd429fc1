#include "backend/cuda/quantised.cuh"

/// What differs in how bytes come: blocks that begin anywhere, two streams, an instruction for fp8, words of lanes, and of warps.
using formats_on_hopper =
    switchyard::quantised::any_of<switchyard::quantised::block_matrix<switchyard::quantised::q8_0>,
                                  switchyard::quantised::mxfp4, switchyard::quantised::fp8_block,
                                  switchyard::quantised::gptq, switchyard::quantised::awq>;

TEST_CASE("on Hopper quantised experts give the bits of the same weights as elements", "[gpu][hopper][operand]") {
  using namespace support;
  if (!has_hopper()) return;
  for (int tokens : {3, 300}) {
    check_quantised<formats_on_hopper, sy::backend::hopper, sy::bfloat16, 256, 256>(tokens, q8_0, mxfp4, fp8_block);
    check_quantised<formats_on_hopper, sy::backend::hopper, sy::bfloat16, 256, 256>(tokens, fp8_block, gptq, q8_0);
    check_quantised<formats_on_hopper, sy::backend::hopper, sy::bfloat16, 256, 256>(tokens, awq, q8_0, gptq);
    check_quantised<formats_on_hopper, sy::backend::hopper, sy::bfloat16, 256, 256>(tokens, mxfp4, awq, awq);
  }
  check_quantised<formats_on_hopper, sy::backend::hopper, sy::bfloat16, 96, 32>(150, gptq, awq, mxfp4);
  check_quantised<formats_on_hopper, sy::backend::hopper, sy::bfloat16, 136, 72>(150, awq, fp8_block, awq);
}

TEST_CASE("quantised weights are read once, and without waiting for banks", "[.structure]") {
  using namespace support;
  if (!has_hopper()) return;
  counters from;
  using layer = stored_layer<formats_on_hopper, sy::backend::hopper, sy::bfloat16, 1024, 1024>;
  constexpr sy::hopper_tuning tuning = sy::default_hopper_tuning::of<layer>();
  for (int format : {q8_0, mxfp4, fp8_block, gptq, awq}) {
    auto const products = count_quantised<formats_on_hopper, sy::backend::hopper, 1024, 1024>(
        200, tuning.in.rows, tuning.in.columns, tuning.out.columns, format, from);
    CHECK(products.size() == 2);
    for (counted_product const& product : products) {
      CAPTURE(format);
      CHECK(product.bytes <= 1.02);
      CHECK(product.conflicts <= 1.0);
      CHECK(product.local_bytes == 0);
    }
  }
}
