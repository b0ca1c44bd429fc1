// Whole layers by the widest instruction sets on any processor: a program of its own, for its library is compiled for them.
#undef SWITCHYARD_EXTERN_KERNELS
#include "backend/emulated_tiles.hpp"
#define SWITCHYARD_EMULATED_TILES ::support::emulated_tiles
#include <switchyard/switchyard.hpp>

#include <tuple>

#include "backend/check.hpp"
#include "catch.hpp"
#include "layers.hpp"
#include "support/adapters.hpp"
#include "support/any_layer.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/compile.hpp"
#include "support/operands.hpp"
#include "support/random_problem.hpp"

namespace sy = switchyard;
using namespace support;

namespace {

using namespace tested;

template <class Element>
using emulated = std::tuple<
    stored<Element, 8, 2, softmax_top_k, dropless, gated_mlp<silu>>,
    stored<Element, 4, 2, router::with_bias<top_k_softmax>, dropless, expert::with_bias<gated_mlp<clamped_swiglu<>>>>,
    stored<Element, 3, 2, on_input<sigmoid_top_k>, factor<1>, with_shared<gated_mlp<silu>, 17, shared_gate::sigmoid>>,
    stored<Element, 3, 2, softmax_top_k, dropless, top_k_units<mlp<relu>, 9>>,
    stored<Element, 3, 2, softmax_top_k, dropless, top_k_units<mlp<relu>, 9, unit_ranking::norm_compensated>>,
    layer<shape{1043, 270, 2, 1}, switch_top1, dropless, mlp<relu>, backend::cpu, Element>>;  // more than one piece

bool const here = compile_all(static_cast<emulated<float> const*>(nullptr)) &&
                  compile_all(static_cast<emulated<sy::bfloat16> const*>(nullptr)) &&
                  compile_all(static_cast<emulated<sy::half> const*>(nullptr));

problem busy_problem(any_layer const& layer) { return random_problem(layer, 150, routing::one_expert, 4); }

int products_by_tiles() {
  int const count = emulated_tiles::begun;
  CHECK(count == emulated_tiles::ended);
  emulated_tiles::begun = emulated_tiles::ended = 0;
  return count;
}

}  // namespace

TEST_CASE("whole layers by the tiles of AMX agree with the reference", "[amx]") {
  REQUIRE(sy::best_instruction_set() == sy::instruction_set::amx);
  for_each_layer([](any_layer const& layer) {
    check_against_reference(
        busy_problem(layer),
        run(busy_problem(layer), {.context = {.threads = 1, .instructions = sy::instruction_set::amx}}));
    CHECK((products_by_tiles() > 0) == (layer.element == "bfloat16"));
  });
}

TEST_CASE("whole layers of floats by three products of bfloat16 parts agree with the reference", "[amx]") {
  for_each_layer([](any_layer const& layer) {
    if (layer.element != "float") return;
    problem const p = busy_problem(layer);
    outcome const got = run(p, {.context = {.threads = 1,
                                            .instructions = sy::instruction_set::amx,
                                            .floats = sy::float_products::three_of_bfloat16}});
    CHECK(products_by_tiles() > 0);
    reference::result const expected = reference::forward(p.config, p.weights, p.tokens, p.inputs);
    check_decisions(got, expected);
    // The product of both smaller parts is left out: some 2^-16 of each term.
    CHECK(relative_error(got.output, expected.y) <= 2e-5);
    CHECK(relative_error(got.output, expected.y) >= 1e-7);
  });
}

TEST_CASE("whole layers by vectors as wide as those of AVX-512 agree with the reference", "[forward]") {
  for_each_layer([](any_layer const& layer) {
    problem const p = busy_problem(layer);
    for (int least : {0, 1'000'000}) {
      INFO("panels from " << least << " rows on");
      check_against_reference(
          p,
          run(p, {.context = {.threads = 1, .instructions = sy::instruction_set::avx512, .least_panel_rows = least}}));
    }
    CHECK(products_by_tiles() == 0);
  });
}

TEST_CASE("terms of low rank are added to the sums of tiles of AMX, too", "[amx][adapters]") {
  using layers = adapter_layers<sy::backend::cpu>::type;
  check_adapters<std::tuple_element_t<1, layers>>(150, {.threads = 1, .instructions = sy::instruction_set::amx});
  CHECK(products_by_tiles() > 0);
  check_all_adapters<layers>(150, {.threads = 1, .instructions = sy::instruction_set::avx512});
}

TEST_CASE("tiles of AMX have the same numbers whether weights are restored or stand in memory", "[amx][operand]") {
  auto const same = [](auto const& got, auto const& expected, auto const&) { CHECK(same_bits(got, expected)); };
  sy::cpu_context context{.threads = 1, .instructions = sy::instruction_set::amx};
  check_operands<operand_layers<sy::backend::cpu, sy::bfloat16, 424, 40>::type>(150, context, same);
  CHECK(products_by_tiles() > 0);
  context.floats = sy::float_products::three_of_bfloat16;
  check_operands<operand_layers<sy::backend::cpu, float, 424, 40>::type>(150, context, same);
  CHECK(products_by_tiles() > 0);
}
