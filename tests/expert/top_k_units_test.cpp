#include <switchyard/switchyard.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "catch.hpp"

/// Top-k units by hand. Lists of layers.hpp compare them with the reference.
namespace sy = switchyard;
using namespace switchyard::expert;

namespace {

struct as_it_is {
  static constexpr std::string_view name = "as_it_is";
  SWITCHYARD_HD static float apply(float x) { return x; }
  SWITCHYARD_HD static float apply(float gate, float up) { return gate * up; }
};

/// What a layer of one expert with these inner values gives for each of some tokens, down being 1, 10, 100 and so on.
template <class Expert, class Element, int Units>
std::vector<float> outputs(float const (&inner)[Units], int tokens, sy::cpu_context const& context) {
  using layer = sy::layer<sy::shape{1, Units, 1, 1}, sy::router::switch_top1, sy::capacity::dropless, Expert,
                          sy::backend::cpu, Element>;
  std::vector<Element> x(static_cast<std::size_t>(tokens), Element(1.0f)), y(x.size()), up, gate(Units, Element(1.0f)),
      down;
  float power = 1.0f;
  for (float h : inner) {
    up.push_back(Element(h));
    down.push_back(Element(power));
    power *= 10.0f;
  }
  float const router[] = {0.0f};
  std::vector<std::byte> scratch(layer::workspace_bytes(tokens));
  typename layer::args args{};
  args.tokens = layer::rows(static_cast<Element const*>(x.data()), tokens);
  args.weights.router.weight = router;
  args.weights.up_proj = layer::in_proj(up.data());
  if constexpr (Expert::traits.gated) args.weights.gate_proj = layer::in_proj(gate.data());
  args.weights.down_proj = layer::out_proj(down.data());
  std::vector<float> norms(Units);
  if constexpr (Expert::traits.ranking == sy::unit_ranking::norm_compensated) {
    sy::unit_norms(args.weights.down_proj, 1, 1, Units, norms.data());
    args.weights.unit_norms = norms.data();
  }
  args.output = layer::rows(y.data(), tokens);
  args.workspace = scratch;
  layer::forward(args, context);
  return {y.begin(), y.end()};
}

/// Calls `body(tokens, context)` for rows in groups and in panels, by every instruction set of this machine.
template <class Body>
void for_each_way(Body body) {
  for (auto set : {sy::instruction_set::portable, sy::instruction_set::avx2, sy::instruction_set::avx512,
                   sy::instruction_set::amx}) {
    if (set > sy::best_instruction_set()) continue;
    for (int tokens : {1, 5, 16, 33, 70}) {
      for (int least : {16, 1000}) {
        CAPTURE(sy::name_of(set), tokens, least);
        body(tokens, sy::cpu_context{.threads = 1, .instructions = set, .least_panel_rows = least});
      }
    }
  }
}

template <class Expert, class Element = float, int Units>
void check(float const (&inner)[Units], double expected, double tolerance = 1e-5) {
  for_each_way([&](int tokens, sy::cpu_context const& context) {
    for (float y : outputs<Expert, Element>(inner, tokens, context))
      CHECK(y == Catch::Approx(expected).epsilon(tolerance));
  });
}

}  // namespace

TEST_CASE("down sees the largest inner values, and all that are equal to the last of them", "[expert]") {
  float const inner[] = {0.9f, -1.0f, 0.3f, 0.5f, 0.3f};  // relu makes 0.9, 0, 0.3, 0.5, 0.3
  check<mlp<sy::relu>>(inner, 3530.9);
  check<top_k_units<mlp<sy::relu>, 1>>(inner, 0.9);
  check<top_k_units<mlp<sy::relu>, 2>>(inner, 500.9);
  check<top_k_units<mlp<sy::relu>, 3>>(inner, 3530.9);
  check<top_k_units<mlp<sy::relu>, 4>>(inner, 3530.9);
  check<top_k_units<gated_mlp<as_it_is>, 3>>(inner, 3530.9);
  check<top_k_units<gated_mlp<as_it_is>, 2>, sy::bfloat16>(inner, 500.9, 1e-2);
  check<top_k_units<gated_mlp<as_it_is>, 2>, sy::half>(inner, 500.9, 1e-3);
  check<scaled<top_k_units<mlp<sy::relu>, 2>, 1, 2>>(inner, 250.45);
}

TEST_CASE("inner values may be ranked times the norms of what down has for them", "[expert]") {
  constexpr auto compensated = sy::unit_ranking::norm_compensated;
  float const inner[] = {0.9f, -1.0f, 0.3f, 0.5f, 0.3f};  // ranks are 0.9, 0, 30, 500, 3000
  check<top_k_units<mlp<sy::relu>, 1, compensated>>(inner, 3000.0);
  check<top_k_units<mlp<sy::relu>, 2, compensated>>(inner, 3500.0);
  check<top_k_units<gated_mlp<as_it_is>, 4, compensated>>(inner, 3530.9);
  check<top_k_units<mlp<sy::relu>, 2, compensated>, sy::bfloat16>(inner, 3500.0, 1e-2);
}

TEST_CASE("the norms of units are those of the columns of down, in either storage order", "[expert]") {
  float const down[] = {3.0f, 0.0f, -1.0f, 4.0f,  -2.0f, 1.0f,   // two output features, three units
                        5.0f, 1.0f, 2.0f,  12.0f, 0.0f,  2.0f};  // and of another expert
  double const expected[] = {5.0, 2.0, std::sqrt(2.0), 13.0, 1.0, std::sqrt(8.0)};
  float transposed[12];
  for (int e = 0; e < 2; ++e) {
    for (int row = 0; row < 2; ++row) {
      for (int i = 0; i < 3; ++i) transposed[e * 6 + i * 2 + row] = down[e * 6 + row * 3 + i];
    }
  }
  for (auto const& view :
       {sy::weight_view<float>::packed(down, 2, 3), sy::weight_view<float>::transposed(transposed, 2, 3)}) {
    float norms[6] = {};
    sy::unit_norms(view, 2, 2, 3, norms);
    for (int i = 0; i < 6; ++i) CHECK(norms[i] == Catch::Approx(expected[i]).epsilon(1e-7));
  }
  CHECK_THROWS_AS(sy::unit_norms(sy::weight_view<float>::packed(down, 2, 3), 2, 2, 3, nullptr), sy::error);
}

TEST_CASE("inner values are compared as numbers, negative ones too", "[expert]") {
  float const inner[] = {-3.0f, -0.5f, -2.0f, -0.25f, -1.0f};
  check<top_k_units<mlp<as_it_is>, 1>>(inner, -250.0);
  check<top_k_units<mlp<as_it_is>, 3>>(inner, -10255.0);
  float const mixed[] = {-3.0f, 2.0f, 0.0f, -0.25f, 1e-30f};
  check<top_k_units<mlp<as_it_is>, 1>>(mixed, 20.0);
  check<top_k_units<mlp<as_it_is>, 4>>(mixed, -230.0);
}

TEST_CASE("an inner value that is infinite or no number goes through", "[expert]") {
  float const no_number = std::numeric_limits<float>::quiet_NaN();
  for (float special : {no_number, -no_number, sy::infinity}) {
    float const inner[] = {0.5f, special, 0.25f};
    for_each_way([&](int tokens, sy::cpu_context const& context) {
      for (float y : outputs<top_k_units<mlp<as_it_is>, 1>, float>(inner, tokens, context)) {
        CHECK((std::isnan(special) ? std::isnan(y) : y == special));
      }
    });
  }
}

TEST_CASE("top-k units is a trait that wrappers keep", "[expert]") {
  using inside = with_bias<top_k_units<gated_mlp<sy::silu>, 64>>;
  CHECK(inside::traits.kept_units == 64);
  CHECK(inside::traits.bias);
  CHECK(inside::name == "with_bias<top_k_units<gated_mlp<silu>,64>>");
  CHECK(gated_mlp<sy::silu>::traits.kept_units == 0);
  CHECK(top_k_units<mlp<sy::relu>, 3, sy::unit_ranking::norm_compensated>::name ==
        "top_k_units<mlp<relu>,3,norm_compensated>");
}
