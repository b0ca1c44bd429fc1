#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "catch.hpp"
#include "device.cuh"
#include "support/compare.hpp"
#include "support/low_rank.hpp"

/// Low rank by language on the GPU.
using namespace support;

TEMPLATE_TEST_CASE("on the GPU tokens of many language pairs in one call have the factors of their languages",
                   "[gpu][low_rank]", float, sy::bfloat16) {
  if (!has_device()) return;
  using paths = sy::language_pairs<2>;
  using layer = low_rank_layer<72, 40, paths, 3, sy::router::by_language_pair<2>, sy::backend::cuda, TestType>;
  for (int tokens : {1, 90}) {
    low_rank_problem const p = random_low_rank(tokens, 72, 40, 3, 2);
    low_rank_call<layer> call(p);
    CHECK(relative_error(call.run(), p.reference()) <= (std::is_same_v<TestType, float> ? 1e-6 : 1e-2));
    int wrong = 0;
    std::vector<std::int32_t> const experts = call.experts();
    for (int t = 0; t < tokens; ++t) wrong += experts[t] != paths::path(p.source[t], p.target[t]);
    CHECK(wrong == 0);
  }
}

TEST_CASE("on the GPU a language that does not exist makes its token's outputs NaN", "[gpu][low_rank]") {
  if (!has_device()) return;
  using layer = low_rank_layer<72, 40, sy::languages<2>, 3, sy::router::by_language<2>, sy::backend::cuda>;
  low_rank_problem p = random_low_rank(3, 72, 40, 3, 2);
  p.target = p.source;
  std::vector<double> const expected = p.reference();
  p.source[1] = 3;
  std::vector<float> const y = run_low_rank<layer>(p);
  int wrong = 0;
  for (int i = 0; i < 72; ++i) {
    wrong += !std::isnan(y[72 + i]);
    for (int t : {0, 2}) wrong += !(std::abs(y[72 * t + i] - expected[72 * t + i]) <= 0.02);
  }
  CHECK(wrong == 0);
}
