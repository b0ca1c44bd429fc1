#include <type_traits>

#include "catch.hpp"
#include "device.cuh"
#include "support/compare.hpp"
#include "support/residuals.hpp"

/// Experts of a centre and residuals on the GPU; restored ones are operands like others: operand_test.cu.
using namespace support;

TEMPLATE_TEST_CASE("on the GPU factored residuals give what the reference makes of restored weights", "[gpu][residual]",
                   float, sy::bfloat16) {
  if (!has_device()) return;
  using base = sy::expert::with_bias<sy::expert::mlp<sy::relu>>;
  using layer = sy::layer<sy::shape{72, 40, 3, 2}, sy::router::precomputed, sy::capacity::dropless,
                          sy::expert::residual<base, sy::low_rank_residuals<5>>, sy::backend::cuda, TestType>;
  for (int tokens : {1, 90}) {
    residual_problem<layer> p(tokens);
    CHECK(relative_error(p.run(), p.expected()) <= (std::is_same_v<TestType, float> ? 2e-6 : 1e-2));
  }
}
