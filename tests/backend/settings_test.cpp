#include <cmath>
#include <string>

#include "backend/check.hpp"
#include "catch.hpp"
#include "support/any_layer.hpp"
#include "support/call.hpp"
#include "support/random_problem.hpp"

#if defined(__x86_64__)
#include <xmmintrin.h>

#include <cstdlib>

/// A process whose denormal numbers are zeros, as other libraries may leave it: CTest runs some tests so.
static bool const flushed = [] {
  if (std::getenv("SWITCHYARD_FLUSH_DENORMALS") != nullptr) _mm_setcsr(_mm_getcsr() | 0x8040u);
  return true;
}();
#endif

using namespace support;

TEST_CASE("whole layers agree with the reference in whatever way a process handles numbers", "[settings]") {
  for (char const* name : {"softmax_top_k:2of8/dropless/gated_mlp<silu>/20x12/cpu/float",
                           "softmax_top_k:2of8/dropless/gated_mlp<silu>/48x40/cpu/bfloat16",
                           "softmax_top_k:2of8/dropless/gated_mlp<silu>/48x40/cpu/half"}) {
    INFO(name);
    for (std::int64_t tokens : {3, 120}) {
      problem p = random_problem(compiled(name), tokens, routing::free, 3);
      check_against_reference(p, run(p));
      // Weights that are denormal as half elements, 2^-15 of the others, which are multiples of 2^-9 at least.
      if (p.layer->element != "half") continue;
      for (double& w : p.weights.down_proj) w = std::ldexp(std::round(std::ldexp(w, 9)), -24);
      check_against_reference(p, run(p));
    }
  }
}
