#include <switchyard/switchyard.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "catch.hpp"

/// Routers that take something from `.inputs`, by hand. Lists of layers.hpp compare them with the reference.
namespace sy = switchyard;

namespace {

/// Experts that multiply by their number plus one, behind a router that sees `Width` numbers of a token.
template <class Router, int Experts, int TopK, int Width = 1>
struct call {
  using layer = sy::layer<sy::shape{1, 1, Experts, TopK}, Router, sy::capacity::dropless, sy::expert::mlp<sy::relu>>;
  std::vector<float> x, y, up, down, router;
  std::vector<std::int32_t> experts;
  std::vector<float> weights;
  std::vector<std::byte> scratch;
  typename layer::args args{};

  explicit call(std::vector<float> tokens) : x(std::move(tokens)), y(x.size()), down(Experts, 1.0f) {
    auto const rows = static_cast<std::int64_t>(x.size());
    for (int e = 0; e < Experts; ++e) up.push_back(static_cast<float>(e + 1));
    experts.resize(x.size() * TopK);
    weights.resize(x.size() * TopK);
    scratch.resize(layer::workspace_bytes(rows));
    args.tokens = layer::rows(static_cast<float const*>(x.data()), rows);
    args.weights.up_proj = layer::in_proj(up.data());
    args.weights.down_proj = layer::out_proj(down.data());
    args.output = layer::rows(y.data(), rows);
    args.workspace = scratch;
    args.decisions.experts = experts.data();
    args.decisions.weights = weights.data();
  }
  void run(sy::cpu_context const& context = {}) { layer::forward(args, context); }
};

}  // namespace

TEST_CASE("replayed experts get the weights that their router makes of the logits", "[router]") {
  // Logits 0, ln 2, ln 3: softmax 1/6, 1/3, 1/2. The router would choose 2 and 1.
  call<sy::router::replayed<sy::router::softmax_top_k>, 3, 2> c({1.0f});
  c.router = {0.0f, std::log(2.0f), std::log(3.0f)};
  c.args.weights.router.weight = c.router.data();
  std::vector<std::int32_t> const given{0, 2};
  c.args.inputs.experts = given.data();
  c.run();
  CHECK(c.experts == given);
  CHECK(c.weights[0] == Catch::Approx(1.0 / 4));
  CHECK(c.weights[1] == Catch::Approx(3.0 / 4));
  CHECK(c.y[0] == Catch::Approx(0.25 * 1 + 0.75 * 3));

  std::vector<std::int32_t> const wrong{0, 3};
  c.args.inputs.experts = wrong.data();
  CHECK_THROWS_WITH(
      c.run(), "switchyard: layer::forward, inputs.experts: expected ids from 0 to 2, got 3 for token 0, choice 1");
  c.run({.unroutable = sy::unroutable_tokens::give_nan});
  CHECK(std::isnan(c.y[0]));
  c.args.inputs.experts = nullptr;
  CHECK_THROWS_WITH(c.run(),
                    "switchyard: layer::forward, inputs.experts: expected [tokens, top_k] int32, got a null pointer");
}

TEST_CASE("what a router chose itself, replayed, is the same call again", "[router]") {
  using routed = call<sy::router::scaled<sy::router::sigma_moe, 3, 2>, 3, 2>;
  using again = call<sy::router::scaled<sy::router::replayed<sy::router::sigma_moe>, 3, 2>, 3, 2>;
  std::vector<float> const router{0.5f, -1.0f, 0.25f};
  routed first({1.0f, -2.0f, 0.75f});
  again second(first.x);
  first.args.weights.router.weight = second.args.weights.router.weight = router.data();
  first.run();
  second.args.inputs.experts = first.experts.data();
  second.run();
  CHECK(second.weights == first.weights);
  CHECK(second.y == first.y);
  // Its own decisions are not where it may write the next ones.
  second.args.inputs.experts = second.experts.data();
  CHECK_THROWS_AS(second.run(), sy::error);
}

TEST_CASE("a hash layer goes by the words alone", "[router]") {
  call<sy::router::hash_layer, 3, 1> c({1.0f, 2.0f, 3.0f, 4.0f});
  std::vector<std::int32_t> const table{2, 0, -1, 1, 7};
  std::vector<std::int32_t> words{3, 0, 0, 2};
  c.args.inputs = {.token_ids = words.data(), .experts = table.data(), .vocabulary = 5};
  c.run();
  CHECK(c.experts == std::vector<std::int32_t>{1, 2, 2, -1});
  CHECK(c.y == std::vector<float>{2.0f, 6.0f, 9.0f, 0.0f});
  CHECK(sy::costs<decltype(c)::layer>(1).parameters == 6);
  CHECK(sy::describe<decltype(c)::layer>() == "hash_layer:1of3/dropless/mlp<relu>/1x1/cpu/float");

  words[1] = 4;
  CHECK_THROWS_WITH(
      c.run(),
      "switchyard: layer::forward, inputs.experts of a token id (-2 stands for an id outside of the vocabulary): "
      "expected ids from 0 to 2, or -1 for none, got 7 for token 1, choice 0");
  for (std::int32_t outside : {-1, 5}) {
    words[1] = outside;
    CHECK_THROWS_WITH(c.run(), Catch::ContainsSubstring("got -2 for token 1, choice 0"));
    c.run({.unroutable = sy::unroutable_tokens::give_nan});
    CHECK(std::isnan(c.y[1]));
    CHECK(c.y[2] == 9.0f);
  }
  c.args.inputs.vocabulary = 0;
  CHECK_THROWS_WITH(
      c.run(), "switchyard: layer::forward, inputs.vocabulary: expected the rows of inputs.experts, at least 1, got 0");
}

TEST_CASE("a router may see other rows than its experts", "[router]") {
  call<sy::router::with_router_input<sy::router::with_bias<sy::router::switch_top1>, 2>, 2, 1> c({1.0f, 2.0f});
  c.router = {1.0f, 0.0f, 0.0f, 1.0f};
  std::vector<float> const bias{0.0f, 0.5f}, seen{1.0f, 0.0f, 9.0f, 0.0f, 0.25f, 9.0f};
  c.args.weights.router = {.weight = c.router.data(), .bias = bias.data(), .correction_bias = nullptr};
  c.args.inputs.tokens = {seen.data(), 2, 2, 3};
  c.run();
  CHECK(c.experts == std::vector<std::int32_t>{0, 1});
  CHECK(c.weights[0] == Catch::Approx(1.0 / (1.0 + std::exp(-0.5))));
  CHECK(c.y[1] == Catch::Approx(2.0 * 2.0 / (1.0 + std::exp(-0.75))));
  CHECK(sy::costs<decltype(c)::layer>(1).parameters == 2 * 2 + 2 + 4);
  c.args.inputs.tokens.columns = 1;
  CHECK_THROWS_WITH(
      c.run(), "switchyard: layer::forward, inputs.tokens: expected 2 x 2 (tokens x the router's width), got 2 x 1");
}
