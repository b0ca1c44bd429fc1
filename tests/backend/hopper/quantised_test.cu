#include "backend/cuda/quantised.cuh"

TEST_CASE("on Hopper quantised experts give the bits of the same weights as elements", "[gpu][hopper][operand]") {
  using namespace support;
  if (!has_hopper()) return;
  for (int tokens : {60, 150, 300}) {
    for (int format = 0; format < quantised_matrices::formats; ++format) {
      check_quantised<sy::backend::hopper, sy::bfloat16, 256, 256>(tokens, format, quantised_matrices::formats);
    }
  }
  for (int format = 0; format < quantised_matrices::with_small_blocks; format += 3) {
    check_quantised<sy::backend::hopper, sy::bfloat16, 96, 32>(150, format, quantised_matrices::with_small_blocks);
  }
}
