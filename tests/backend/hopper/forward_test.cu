#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <tuple>
#include <utility>

#include "backend/check.hpp"
#include "backend/cuda/device.cuh"
#include "backend/hopper/hopper_layers.hpp"
#include "catch.hpp"
#include "support/any_layer.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/half_range.hpp"
#include "support/random_problem.hpp"
#include "support/unroutable.hpp"
#include "support/workspaces.hpp"

using namespace support;

namespace {

/// So many that experts have more rows than few.
constexpr int tested_tokens = 90;

problem usual_problem(any_layer const& layer) { return random_problem(layer, tested_tokens, routing::free, 7); }

/// Layers whose products differ from all others'.
template <class Body>
void for_each_product(Body body) {
  for_each_layer([&](any_layer const& layer) {
    if (layer.name.starts_with("softmax_top_k:2of3/dropless") || layer.expert.bias) body(layer);
  });
}

}  // namespace

TEST_CASE("every layer of Hopper's lists is tested", "[gpu][hopper]") {
  if (!has_hopper()) return;
  CHECK(compiled_layers().size() ==
        std::tuple_size_v<tested::policies> + std::tuple_size_v<tested::on_hopper<tested::experts>> +
            std::tuple_size_v<tested::hopper_shapes> + std::tuple_size_v<tested::fallen_back> +
            std::tuple_size_v<tested::hopper_tilings>);
}

TEST_CASE("on Hopper forward agrees with the reference", "[gpu][hopper]") {
  if (!has_hopper()) return;
  for_each_layer([](any_layer const& layer) {
    int turn = 0;
    for (std::int64_t tokens : {0, 7, tested_tokens}) {
      routing const where = std::array{routing::free, routing::one_expert, routing::half_of_the_experts}[turn++ % 3];
      INFO(tokens << " tokens, routing: " << name_of(where));
      problem const p = random_problem(layer, tokens, where, static_cast<unsigned>(tokens));
      check_against_reference(p, run(p));
    }
  });
}

TEST_CASE("on Hopper experts with more rows than a tile, and with none, agree with the reference", "[gpu][hopper]") {
  if (!has_hopper()) return;
  for_each_product([](any_layer const& layer) {
    // Of three experts one has no token; then one has all, with a last tile of one row.
    for (auto [tokens, where] : {std::pair{200, routing::half_of_the_experts}, std::pair{257, routing::one_expert}}) {
      INFO(tokens << " tokens");
      problem const p = random_problem(layer, tokens, where, 3);
      check_against_reference(p, run(p));
    }
  });
}

TEST_CASE("on Hopper the result has the same bits on every run, and in place", "[gpu][hopper][small]") {
  if (!has_hopper()) return;
  for_each_product([](any_layer const& layer) {
    problem const p = usual_problem(layer);
    outcome const once = run(p);
    CHECK(same_bits(run(p), once));
    CHECK(same_bits(run(p, {.in_place = true}), once));
  });
}

TEST_CASE("on Hopper weights may be stored in any layout, and rows may stand apart", "[gpu][hopper]") {
  if (!has_hopper()) return;
  for_each_product([](any_layer const& layer) {
    problem const p = usual_problem(layer);
    outcome const separate = run(p);
    for (layout l : all_layouts) {
      if (l == layout::separate || (!layer.expert.gated && l != layout::transposed)) continue;
      INFO(name_of(l));
      CHECK(same_bits(run(p, {.stored = l}), separate));
    }
    // By 16 bytes and not.
    for (int padding : {8, 5}) {
      INFO("padding: " << padding);
      outcome const apart = run(p, {.padding = padding});
      CHECK(apart.guards_intact);
      CHECK(relative_error(apart.output, std::vector<double>(separate.output.begin(), separate.output.end())) <=
            output_tolerance(layer));
    }
  });
}

TEST_CASE("on Hopper steps, and a graph that was captured, give the bits of forward", "[gpu][hopper]") {
  if (!has_hopper()) return;
  for_each_product([](any_layer const& layer) {
    problem const p = usual_problem(layer);
    outcome const expected = run(p);
    for (call_mode mode : {call_mode::steps, call_mode::captured}) {
      current_call_mode() = mode;
      outcome got;
      REQUIRE_NOTHROW(got = run(p));
      current_call_mode() = call_mode::whole;
      CHECK(same_bits(got, expected));
      CHECK(got.guards_intact);
    }
  });
}

TEST_CASE("on Hopper a token that cannot be routed gives NaN, and the others what they gave", "[gpu][hopper]") {
  if (!has_hopper()) return;
  for_each_product([](any_layer const& layer) { check_unroutable_token(layer); });
}

TEST_CASE("on Hopper half rows may be beyond half's range where the output is not", "[gpu][hopper]") {
  if (!has_hopper()) return;
  int checked = 0;
  for_each_layer([&](any_layer const& layer) {
    for (std::int64_t tokens : {4, 70, 200}) checked += check_half_range(layer, tokens) ? 1 : 0;
  });
  CHECK(checked >= 9);
}

TEST_CASE("on Hopper a workspace for more tokens is never smaller", "[gpu][hopper]") { check_workspaces(); }

namespace {

/// What the products of a call would be; nothing is run.
template <class Layer>
sy::product_kind products_of(int tokens, sy::weight_view<typename Layer::element> gate,
                             sy::weight_view<typename Layer::element> up, int apart = 0) {
  using element = typename Layer::element;
  device_array<element> const memory(1 << 16);
  device_array<std::byte> const workspace(Layer::workspace_bytes(tokens));
  typename Layer::args args{};
  args.tokens = {memory.data(), tokens, Layer::dims.hidden, Layer::dims.hidden + apart};
  args.workspace = {workspace.data(), workspace.size()};
  auto const moved = [&](sy::weight_view<element> view) {
    view.data = memory.data() + (view.data - static_cast<element const*>(nullptr));
    return view;
  };
  args.weights.gate_proj = moved(gate);
  args.weights.up_proj = moved(up);
  args.weights.down_proj = Layer::out_proj(memory.data());
  return Layer::backend::template products_of<Layer>(args);
}

}  // namespace

TEST_CASE("backend::hopper says what the products of a call are", "[gpu][hopper]") {
  if (!has_hopper()) return;
  using layer = tested::shaped<48, 40, sy::expert::gated_mlp<sy::silu>, sy::bfloat16>;
  using floats = tested::shaped<48, 40, sy::expert::gated_mlp<sy::silu>, float>;
  using sy::product_kind;
  sy::bfloat16 const* const none = nullptr;
  auto const packed = layer::in_proj(none);
  CHECK(products_of<layer>(90, packed, packed) == product_kind::grouped);
  CHECK(products_of<layer>(12, packed, packed) == product_kind::few_rows);
  CHECK(products_of<layer>(90, packed, packed, 5) == product_kind::strided);
  CHECK(products_of<layer>(90, packed, packed, 8) == product_kind::grouped);
  using enum sy::gate_up_order;
  for (sy::gate_up_order order : {concatenated, interleaved}) {
    for (sy::storage stored : {sy::storage::output_major, sy::storage::input_major}) {
      auto const both = layer::split_gate_up(none, order, stored);
      CHECK(products_of<layer>(90, both.gate, both.up) == product_kind::grouped);
    }
  }
  auto shifted = packed;
  shifted.data += 4;  // no multiple of 16 bytes
  CHECK(products_of<layer>(90, packed, shifted) == product_kind::strided);
  auto const turned = sy::weight_view<sy::bfloat16>::transposed(none, 40, 48);
  CHECK(products_of<layer>(90, packed, turned) == product_kind::strided);
  CHECK(products_of<layer>(90, turned, turned) == product_kind::grouped);
  CHECK(products_of<floats>(90, floats::in_proj(nullptr), floats::in_proj(nullptr)) == product_kind::portable);
  CHECK(sy::describe<layer>().ends_with("/48x40/hopper/bfloat16"));
  CHECK(sy::describe<floats>().ends_with("/48x40/hopper(cuda)/float"));
}
