#include <cmath>
#include <cstdint>

#include "backend/check.hpp"
#include "catch.hpp"
#include "support/any_layer.hpp"
#include "support/call.hpp"
#include "support/compile.hpp"
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

namespace {

template <int Hidden, int Intermediate, class Element>
using tested_layer = sy::layer<sy::shape{Hidden, Intermediate, 8, 2}, sy::router::softmax_top_k, sy::capacity::dropless,
                               sy::expert::gated_mlp<sy::silu>, sy::backend::cpu, Element>;

}  // namespace

// Layers of this file's own, so that they and, where the program shares none, their kernels are compiled as it is.
TEST_CASE("whole layers agree with the reference in whatever way a process handles numbers", "[settings]") {
  for (any_layer const& layer : {erase<tested_layer<20, 12, float>>(), erase<tested_layer<48, 40, sy::bfloat16>>(),
                                 erase<tested_layer<48, 40, sy::half>>()}) {
    INFO(layer.name);
    for (std::int64_t tokens : {3, 120}) {
      problem p = random_problem(layer, tokens, routing::free, 3);
      check_against_reference(p, run(p));
      // Weights that are denormal as half elements, 2^-15 of the others, which are multiples of 2^-9 at least.
      if (layer.element != "half") continue;
      for (double& w : p.weights.down_proj) w = std::ldexp(std::round(std::ldexp(w, 9)), -24);
      check_against_reference(p, run(p));
    }
  }
}
