#include "backend/cuda/device.cuh"
#include "catch.hpp"
#include "support/compare.hpp"
#include "support/low_rank.hpp"

/// Low rank by language in the products of backend::hopper.
using namespace support;

TEST_CASE("on Hopper tokens of many language pairs in one call have the factors of their languages",
          "[gpu][hopper][low_rank]") {
  if (!has_hopper()) return;
  using layer = low_rank_layer<200, 72, sy::language_pairs<1>, 3, sy::router::by_language_pair<1>, sy::backend::hopper,
                               sy::bfloat16>;
  for (int tokens : {1, 150}) {  // with products of backend::cuda, and with Hopper's
    low_rank_problem const p = random_low_rank(tokens, 200, 72, 3, 1);
    low_rank_call<layer> call(p);
    CHECK(relative_error(call.run(), p.reference()) <= 1e-2);
    bool const grouped = sy::backend::hopper::products_of<layer>(call.args) == sy::product_kind::grouped;
    CHECK(grouped == (tokens > 1));
  }
}
