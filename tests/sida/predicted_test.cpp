#include <switchyard/sida/hash_table.hpp>
#include <switchyard/switchyard.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "support/random_numbers.hpp"
#include "support/said.hpp"

/// The router that predictions take the place of, by hand; whole layers are in tests/layers.hpp.
namespace sy = switchyard;
using Catch::Approx;
using support::said;

namespace {

using recommended = sy::router::predicted<>;
using published = sy::router::predicted<sy::router::published_prediction>;

template <int TopK, class Router>
using small = sy::layer<sy::shape{.hidden = 6, .intermediate = 5, .experts = 4, .top_k = TopK}, Router,
                        sy::capacity::dropless, sy::expert::mlp<sy::relu>>;

/// The weights that a router gives predictions of one token.
template <class Router>
std::vector<float> weights_of(std::vector<float> const& probabilities) {
  std::vector<std::int32_t> const ids(probabilities.size(), 2);
  std::vector<float> result;
  auto const top_k = static_cast<int>(probabilities.size());
  for (int k = 0; k < top_k; ++k) {
    sy::routed_pair const pair = Router::pair({ids.data(), probabilities.data()}, 0, top_k, k);
    CHECK(pair.expert == 2);
    result.push_back(pair.weight);
  }
  return result;
}

/// Tokens and experts of a small layer, and room for a call.
struct problem {
  static constexpr std::int64_t tokens = 7;
  std::vector<float> x, router, up, down, y = std::vector<float>(tokens * 6, 7.0f);
  std::vector<std::byte> scratch = std::vector<std::byte>(1 << 16);

  problem() {
    support::random_numbers random(5);
    for (auto [values, count] : {std::pair(&x, tokens * 6), std::pair(&router, std::int64_t{4 * 6}),
                                 std::pair(&up, std::int64_t{4 * 5 * 6}), std::pair(&down, std::int64_t{4 * 6 * 5})}) {
      for (std::int64_t i = 0; i < count; ++i) values->push_back(static_cast<float>(random.normal()));
    }
  }
  template <class Layer>
  typename Layer::args args() {
    return {.tokens = Layer::rows(x.data(), tokens),
            .weights = {.up_proj = Layer::in_proj(up.data()), .down_proj = Layer::out_proj(down.data())},
            .output = Layer::rows(y.data(), tokens),
            .workspace = scratch};
  }
  template <class Layer>
  std::vector<float> run(std::vector<std::int32_t> const& ids, std::vector<float> const& probabilities) {
    auto call = args<Layer>();
    call.inputs = {ids.data(), probabilities.data()};
    Layer::forward(call);
    return y;
  }
};

}  // namespace

TEST_CASE("weights of predictions by hand", "[sida]") {
  CHECK(weights_of<recommended>({0.3f}) == std::vector{0.3f});  // the bits of the prediction
  std::vector<float> const two = weights_of<recommended>({0.6f, 0.2f});
  CHECK(two[0] == Approx(0.45f));
  CHECK(two[1] == Approx(0.15f));  // together 0.6
  CHECK(weights_of<recommended>({0.0f, 0.0f}) == std::vector{0.0f, 0.0f});
  CHECK(weights_of<published>({0.5f}) == std::vector{0.25f});
  CHECK(weights_of<published>({0.5f, 0.25f, 0.125f}) == std::vector{0.25f, 0.0625f, 0.03125f});
  // The published list ends after three: five have 0.5 and four times 0.125.
  CHECK(weights_of<published>({0.5f, 0.25f, 0.25f, 0.0f, 1.0f}) ==
        std::vector{0.25f, 0.03125f, 0.03125f, 0.0f, 0.125f});
  CHECK(recommended::name == "predicted");
  CHECK(published::name == "predicted<published>");
  CHECK(sy::router::predicted<sy::prediction_traits{.degrades = true}>::name == "predicted<degraded>");
  CHECK_FALSE(sy::makes_logits<recommended>);
  CHECK_FALSE(recommended::traits.replaces_zeros);
}

TEST_CASE("with an oracle's table the output is that of Switch without a capacity", "[sida]") {
  problem p;
  using own = small<1, sy::router::switch_top1>;
  std::vector<std::int32_t> ids(problem::tokens);
  std::vector<float> weights(problem::tokens), logits(problem::tokens * 4);
  auto call = p.args<own>();
  call.weights.router = {.weight = p.router.data()};
  call.decisions = {.experts = ids.data(), .weights = weights.data()};
  call.report = {.logits = logits.data()};
  own::forward(call);
  std::vector<float> const expected = p.y;
  CHECK(p.run<small<1, recommended>>(ids, weights) == expected);

  // The same by a table of the router's logits.
  sy::sida::hash_table table;
  sy::sida::build_hash_table(logits.data(), 1, problem::tokens, 4, 1, table);
  CHECK(table.ids == ids);
  std::vector<float> const by_table = p.run<small<1, recommended>>(table.ids, table.probabilities);
  for (std::size_t i = 0; i < by_table.size(); ++i) CHECK(by_table[i] == Approx(expected[i]).margin(1e-6));
}

TEST_CASE("zeros become the token's elements, each by itself, as published", "[sida]") {
  problem p;
  // Feature 2 gets nothing from any expert, and token 3 reaches no unit of expert 1.
  for (std::size_t e = 0; e < 4; ++e) {
    for (std::size_t i = 0; i < 5; ++i) p.down[(e * 6 + 2) * 5 + i] = 0.0f;
  }
  for (std::size_t i = 0; i < 5 * 6; ++i) p.up[5 * 6 + i] = -p.x[3 * 6 + i % 6];
  std::vector<std::int32_t> ids = {0, 1, 1, 2, 2, 3, 1, 1, 0, 3, 2, 0, -1, -1};
  std::vector<float> const p_of(14, 0.5f);
  std::vector<float> const plain =
      p.run<small<2, sy::router::predicted<sy::prediction_traits{.degrades = true}>>>(ids, p_of);
  std::vector<float> const got = p.run<small<2, published>>(ids, p_of);
  for (std::size_t i = 0; i < got.size(); ++i) {
    std::size_t const token = i / 6, feature = i % 6;
    bool const none = feature == 2 || token == 3 || token == 6;
    INFO("token " << token << ", feature " << feature);
    CHECK((plain[i] == 0.0f) == none);
    CHECK(got[i] == (none ? p.x[i] : plain[i]));
  }

  // A row that is not active is zero, and tokens may be overwritten.
  using layer = small<2, published>;
  std::vector<std::uint8_t> const active = {1, 1, 0, 1, 1, 1, 1};
  auto call = p.args<layer>();
  call.output = layer::rows(p.x.data(), problem::tokens);
  call.inputs = {ids.data(), p_of.data()};
  call.active = active.data();
  layer::forward(call);
  for (std::size_t i = 0; i < got.size(); ++i) CHECK(p.x[i] == (i / 6 == 2 ? 0.0f : got[i]));
}

TEST_CASE("wrong predictions are refused", "[sida]") {
  problem p;
  std::vector<std::int32_t> ids(problem::tokens, 1);
  std::vector<float> probabilities(problem::tokens, 0.5f);
  auto const refused = [&] { return said([&] { p.run<small<1, recommended>>(ids, probabilities); }); };
  ids[2] = 4;
  CHECK(refused() ==
        "switchyard: layer::forward, inputs.experts: expected ids from 0 to 3, or -1 for none, got 4 for "
        "token 2, choice 0");
  ids[2] = 0;
  probabilities[6] = std::numeric_limits<float>::infinity();
  CHECK(refused() ==
        "switchyard: layer::forward, inputs.probabilities: expected finite numbers, got inf for token 6, choice 0");
  using layer = small<1, recommended>;
  auto call = p.args<layer>();
  call.inputs.experts = ids.data();
  CHECK(said([&] { layer::forward(call); }) ==
        "switchyard: layer::forward, inputs.probabilities: expected [tokens, top_k] float, got a null pointer");
}
