#include "backend/cuda/device.cuh"
#include "catch.hpp"
#include "support/adapters.hpp"
#include "support/compare.hpp"
#include "support/low_rank.hpp"

/// Low rank by language, and adapters, with backend::hopper.
using namespace support;

TEST_CASE("on Hopper restored weights of many language pairs are those of their languages", "[gpu][hopper][low_rank]") {
  using factored = low_rank_layer<200, 72, sy::language_pairs<1>, 3, sy::router::by_language_pair<1>,
                                  sy::backend::hopper, sy::bfloat16>;
  CHECK(sy::backend::hopper::name_for<factored>() == "hopper(cuda)");
  if (!has_hopper()) return;
  using layer = low_rank_layer<200, 72, sy::language_pairs<1>, 3, sy::router::by_language_pair<1>, sy::backend::hopper,
                               sy::bfloat16, sy::low_rank_form::restored>;
  for (int tokens : {1, 150}) {  // with products of backend::cuda, and with Hopper's
    low_rank_problem const p = random_low_rank(tokens, 200, 72, 3, 1);
    low_rank_call<layer> call(p);
    CHECK(relative_error(call.run(), p.reference()) <= 1e-2);
    bool const grouped = sy::backend::hopper::products_of<layer>(call.args) == sy::product_kind::grouped;
    CHECK(grouped == (tokens > 1));
  }
}

TEST_CASE("on Hopper layers with terms of low rank have the products of backend::cuda", "[gpu][hopper][adapters]") {
  if (!has_hopper()) return;
  using layer = sy::layer<sy::shape{40, 72, 2, 1}, sy::router::precomputed, sy::capacity::factor<1, 1>,
                          sy::expert::adapters<3, 19, sy::expert::mlp<sy::relu>>, sy::backend::hopper, sy::bfloat16>;
  check_adapters<layer>(20);
  adapters_problem<layer> const p(20);
  CHECK(sy::backend::hopper::products_of<layer>(p.args) == sy::product_kind::portable);
}
