#include <switchyard/switchyard.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "catch.hpp"
#include "layers.hpp"
#include "support/any_layer.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/compile.hpp"
#include "support/random_problem.hpp"

/// The steps of `backend::cpu`, one by one, with the signatures that the GPU's have.
using namespace support;

namespace {

using namespace tested;

/// Runs a layer step by step, and looks at what stands between them.
template <class Layer>
void forward_in_steps(any_args const& from, sy::cpu_context const& context) {
  typed_args<typename Layer::element> const typed(from, Layer::dims.hidden);
  typename Layer::args args{};
  args.tokens = typed.tokens;
  args.weights.up_proj = typed.up_proj;
  args.weights.down_proj = typed.down_proj;
  args.output = typed.output;
  args.workspace = from.workspace;
  args.tokens_per_group = from.tokens_per_group;
  args.active = from.active;
  args.decisions = from.decisions;
  set_arguments(args, typed.optional);
  using cpu = sy::backend::cpu;
  cpu::route<Layer>(args, context);
  std::int64_t const pairs = from.rows * Layer::dims.top_k;
  std::vector<std::int32_t> const routed(cpu::routes_of<Layer>(args).experts,
                                         cpu::routes_of<Layer>(args).experts + pairs);
  cpu::plan<Layer>(args, context);
  sy::dispatch_plan const plan = cpu::plan_of<Layer>(args);
  for (int e = 0; e < Layer::dims.experts; ++e) {
    for (std::int32_t row = plan.offsets[e]; row < plan.offsets[e + 1]; ++row) {
      REQUIRE(routed[static_cast<std::size_t>(plan.pair_of[row])] == e);
      REQUIRE(plan.row_of[plan.pair_of[row]] == row);
    }
  }
  cpu::experts<Layer>(args, context);
}

template <class Layer>
void check_steps() {
  any_layer whole = erase<Layer>(), in_steps = whole;
  in_steps.forward = &forward_in_steps<Layer>;
  INFO(whole.name);
  for (std::int64_t tokens : {0, 70}) {
    problem p = random_problem(whole, tokens, routing::free, 9);
    if (whole.capacity.drops) p.config.tokens_per_group = 25;
    outcome const expected = run(p);
    problem q = random_problem(in_steps, tokens, routing::free, 9);
    q.config.tokens_per_group = p.config.tokens_per_group;
    outcome const got = run(q);
    CHECK(same_bits(got, expected));
    CHECK(got.guards_intact);
  }
}

}  // namespace

TEST_CASE("on the CPU route, plan and experts give the bits of forward", "[steps]") {
  check_steps<computed<with_shared<gated_mlp<silu>, 11>>>();
  check_steps<limited<8, 2, renormalised<queued<share_of_tokens<1, 8>, queue::priority>>, softmax_top_k_raw>>();
  check_steps<routed<8, 2, precomputed>>();
  check_steps<layer<shape{20, 17, 4, 2}, adaptive_clustering<softmax_top_k_raw, vision>,
                    on_drop<factor<1, 2>, dropped::input>, mlp<relu>>>();
}

TEST_CASE("a step refuses what forward refuses", "[steps][errors]") {
  using layer = routed<8, 2, softmax_top_k>;
  for (auto* step :
       {&sy::backend::cpu::route<layer>, &sy::backend::cpu::plan<layer>, &sy::backend::cpu::experts<layer>}) {
    CHECK_THROWS_WITH(step(layer::args{}, {}),
                      Catch::Matchers::StartsWith("switchyard: layer::forward, tokens: expected 0 x 20"));
  }
}
