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

TEST_CASE("the experts may see other rows than the tokens", "[steps]") {
  using layer = sy::layer<sy::shape{4, 8, 3, 1}, switch_top1, dropless, mlp<relu>>;
  std::vector<float> numbers(200), x(20), rows(20), expected(20), got(20);
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i * 7 % 13) - 6.0f;
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<float>(i * 5 % 11) - 5.0f;
    rows[i] = 2.0f * x[i];
  }
  std::vector<std::byte> scratch(layer::workspace_bytes(5));
  layer::args args{};
  args.tokens = layer::rows(static_cast<float const*>(x.data()), 5);
  args.weights.router.weight = numbers.data();
  args.weights.up_proj = layer::in_proj(numbers.data());
  args.weights.down_proj = layer::out_proj(numbers.data() + 20);
  args.output = layer::rows(expected.data(), 5);
  args.workspace = scratch;
  layer::forward(args);
  args.output = layer::rows(got.data(), 5);
  using cpu = sy::backend::cpu;
  cpu::route<layer>(args);
  cpu::plan<layer>(args);
  cpu::experts<layer>(args, {}, {rows.data(), 5, 4});
  for (std::size_t i = 0; i < got.size(); ++i) CHECK(got[i] == 2.0f * expected[i]);  // relu keeps the factor
  CHECK_THROWS_WITH(cpu::experts<layer>(args, {}, {rows.data(), 4, 4}),
                    "switchyard: layer::forward, rows: expected 5 x 4 (tokens x hidden), got 4 x 4");
}

TEST_CASE("a step refuses what forward refuses", "[steps][errors]") {
  using layer = routed<8, 2, softmax_top_k>;
  using step = void (*)(sy::forward_args<layer> const&, sy::cpu_context const&);
  for (step run : {step{&sy::backend::cpu::route<layer>}, step{&sy::backend::cpu::plan<layer>},
                   step{&sy::backend::cpu::experts<layer>}}) {
    CHECK_THROWS_WITH(run(layer::args{}, {}),
                      Catch::Matchers::StartsWith("switchyard: layer::forward, tokens: expected 0 x 20"));
  }
}
