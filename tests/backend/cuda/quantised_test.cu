#include "quantised.cuh"

TEST_CASE("on the GPU quantised experts give the bits of the same weights as elements", "[gpu][operand]") {
  using namespace support;
  if (!has_device()) return;
  // With each of the three tiles, every format in each of the three places.
  int turn = 0;
  for (int tokens : {3, 60, 150}) {
    for (int format = 0; format < quantised_matrices::formats; format += 3) {
      check_quantised<sy::backend::cuda, sy::bfloat16, 256, 256>(tokens, format + turn, quantised_matrices::formats);
    }
    ++turn;
  }
  // Lines that begin anywhere, and a depth that ends inside of a stage.
  for (int format = 0; format < quantised_matrices::with_small_blocks; format += 3) {
    check_quantised<sy::backend::cuda, sy::bfloat16, 96, 32>(20, format, quantised_matrices::with_small_blocks);
  }
}
