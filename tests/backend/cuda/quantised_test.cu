#include "quantised.cuh"

TEST_CASE("on the GPU quantised experts give the bits of the same weights as elements", "[gpu][operand]") {
  using namespace support;
  if (!has_device()) return;
  // With each of the three tiles, every format in each of the three places.
  int turn = 0;
  for (int tokens : {3, 60, 150}) {
    for (int format = turn++; format < q6_K + 1 + turn; format += 3) {
      check_quantised<all_formats, sy::backend::cuda, sy::bfloat16, 256, 256>(
          tokens, format % (q6_K + 1), (format + 1) % (q6_K + 1), (format + 2) % (q6_K + 1));
    }
  }
  // Lines that begin anywhere, and a depth that ends inside of a stage; blocks of 256 have none.
  for (int format = q8_0; format <= awq; format += 3) {
    check_quantised<all_formats, sy::backend::cuda, sy::bfloat16, 96, 32>(20, format, (format + 1) % q4_K,
                                                                          (format + 2) % q4_K);
  }
}

TEST_CASE("quantised weights are read once, and without waiting for banks", "[.structure]") {
  using namespace support;
  counters from;
  for (int format = q8_0; format <= q6_K; ++format) {
    auto const products = count_quantised<all_formats, sy::backend::cuda, 1024, 1024>(4, 16, 64, 64, format, from);
    CHECK(products.size() == 2);
    for (counted_product const& product : products) {
      CAPTURE(format);
      // Zeros of gptq and awq are a quarter of their sectors, and lines of q6_K begin inside of sectors, not all at the same place. Gated tiles
      // of few rows have 32 features of each matrix, which are half of a sector of awq: the next tile reads the other half.
      bool const halves = format == awq && &product == &products[0];
      CHECK(product.bytes <= (halves ? 1.85 : format == gptq || format == awq || format == q6_K ? 1.03 : 1.01));
      CHECK(product.conflicts <= (format == q6_K ? 20.0 : 1.0));
      CHECK(product.local_bytes == 0);
    }
  }
}
