#include <switchyard/switchyard.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "catch.hpp"
#include "support/compare.hpp"
#include "support/random_numbers.hpp"

namespace sy = switchyard;
using support::same_bits;

namespace {

/// What tokens are stored as, what the router weight is, and sizes.
template <class Element, class Weight, int Hidden, int Experts>
struct product {
  using element = Element;
  using weight = Weight;
  static constexpr int hidden = Hidden, experts = Experts;
};

/// Every kind of number that a weight may have: small and large, subnormal, and zeros of both signs.
template <class Weight>
std::vector<Weight> router_weights(std::size_t count) {
  support::random_numbers random(3);
  std::vector<Weight> weights;
  for (std::size_t i = 0; i < count; ++i) {
    double const value = random.normal();
    double const scales[] = {1.0, 1.0, 1e-3, 1e-6, 0.0, 100.0};  // 1e-6 is subnormal as a half
    weights.push_back(Weight(static_cast<float>(value * scales[random.below(6)])));
  }
  return weights;
}

template <class Element>
std::vector<Element> some_tokens(std::size_t count) {
  support::random_numbers random(5);
  std::vector<Element> tokens;
  for (std::size_t i = 0; i < count; ++i) tokens.push_back(Element(static_cast<float>(random.normal())));
  return tokens;
}

}  // namespace

TEMPLATE_TEST_CASE("logits have the bits that they have with the weight widened to floats", "[router]",
                   (product<float, sy::bfloat16, 1, 1>), (product<float, sy::bfloat16, 37, 5>),
                   (product<float, sy::bfloat16, 64, 33>), (product<sy::bfloat16, sy::bfloat16, 1043, 70>),
                   (product<sy::half, sy::half, 600, 8>), (product<float, sy::half, 47, 34>)) {
  using element = typename TestType::element;
  using weight = typename TestType::weight;
  constexpr int hidden = TestType::hidden, experts = TestType::experts, most_tokens = 20;
  std::vector<weight> const stored = router_weights<weight>(experts * hidden);
  std::vector<float> const widened(stored.begin(), stored.end());
  std::vector<element> const tokens = some_tokens<element>(most_tokens * hidden);
  std::vector<float> const bias(experts, 0.375f);
  for (auto set : {sy::instruction_set::portable, sy::instruction_set::avx2, sy::instruction_set::avx512}) {
    if (set > sy::best_instruction_set()) continue;
    for (int count : {1, 2, 7, 8, 9, most_tokens}) {
      CAPTURE(sy::name_of(set), count);
      sy::cpu_context const context{.threads = 1, .instructions = set};
      sy::view<element const> const rows(tokens.data(), count, hidden);
      std::vector<float> got(static_cast<std::size_t>(count) * experts), expected = got;
      sy::cpu::make_logits(sy::cpu::router_product<element, weight>{rows, hidden, experts, stored.data(), bias.data()},
                           context, got.data());
      sy::cpu::make_logits(sy::cpu::router_product<element>{rows, hidden, experts, widened.data(), bias.data()},
                           context, expected.data());
      CHECK(same_bits(got, expected));
    }
  }
}

namespace {

/// The output and the decisions of a layer with a router weight of one kind.
struct outcome {
  std::vector<float> output;
  std::vector<std::int32_t> experts;
  std::vector<float> weights;
};

template <class Router, class Weight>
outcome run(std::vector<Weight> const& router) {
  constexpr int hidden = 24, rows = 30, experts = 8, top_k = 2;
  using layer =
      sy::layer<sy::shape{hidden, 12, experts, top_k}, Router, sy::capacity::dropless, sy::expert::mlp<sy::relu>>;
  std::vector<float> const x = some_tokens<float>(rows * hidden), matrices = some_tokens<float>(experts * hidden * 12),
                           bias(experts, -0.25f);
  outcome out{std::vector<float>(rows * hidden), std::vector<std::int32_t>(rows * top_k * 2),
              std::vector<float>(rows * top_k * 2)};
  std::vector<std::byte> scratch(layer::workspace_bytes(rows));
  typename layer::args args{};
  args.tokens = layer::rows(x.data(), rows);
  auto const set = [&](auto& to, std::size_t first) {
    to.weight = router.data() + first;
    if constexpr (Router::traits.bias) to.bias = bias.data();
    if constexpr (Router::traits.correction_bias) to.correction_bias = bias.data();
  };
  if constexpr (sy::router::climbs<typename Router::schedule>) {
    set(args.weights.router.stratum[0], 0);
    set(args.weights.router.stratum[1], 5);
    args.inputs.residual = layer::rows(x.data(), rows);
  } else if constexpr (Router::traits.owner == sy::router_owner::model) {
    set(args.shared_router, 0);
  } else {
    set(args.weights.router, 0);
  }
  if constexpr (requires { Router::features::width; }) args.inputs.tokens = {x.data(), rows, 20, hidden};
  args.weights.up_proj = layer::in_proj(matrices.data());
  args.weights.down_proj = layer::out_proj(matrices.data());
  args.output = layer::rows(out.output.data(), rows);
  args.workspace = scratch;
  args.decisions.experts = out.experts.data();
  args.decisions.weights = out.weights.data();
  layer::forward(args);
  return out;
}

template <class Router, class Weight>
void check_alike() {
  using stored_router = sy::router::with_weight_element<Router, Weight>;
  CAPTURE(stored_router::name);
  std::vector<Weight> const stored = router_weights<Weight>(8 * 24 + 5);
  outcome const got = run<stored_router>(stored);
  outcome const expected = run<Router>(std::vector<float>(stored.begin(), stored.end()));
  CHECK(same_bits(got.output, expected.output));
  CHECK(same_bits(got.experts, expected.experts));
  CHECK(same_bits(got.weights, expected.weights));
}

}  // namespace

TEST_CASE("layers are the same with a router weight in two bytes, whatever wraps the router", "[router]") {
  using namespace sy::router;
  check_alike<softmax_top_k, sy::bfloat16>();
  check_alike<shared<with_bias<sigmoid_top_k>>, sy::half>();
  check_alike<top_k<scores::sigmoid, selection::corrected, weighting::sum>, sy::bfloat16>();
  check_alike<with_router_input<softmax_top_k_raw, 20>, sy::bfloat16>();
  check_alike<without_stratum_norms<stratified<softmax_top_k, 4, 4>>, sy::half>();
  check_alike<softmax_top_k, float>();
  CHECK(std::string(with_weight_element<softmax_top_k, sy::bfloat16>::name) ==
        "with_weight_element<softmax_top_k,bfloat16>");
}

TEST_CASE("a router weight in two bytes is checked, and counts its bytes", "[router]") {
  using layer =
      sy::layer<sy::shape{10, 3, 4, 2}, sy::router::with_weight_element<sy::router::softmax_top_k, sy::bfloat16>,
                sy::capacity::dropless, sy::expert::mlp<sy::relu>>;
  CHECK(sy::costs<layer>(7, 3).bytes == 4.0 * (3 * 60 + 2 * 7 * 10) + 2.0 * 40);
  CHECK(sy::costs<layer>(7).parameters == 4 * 60 + 40);
  std::vector<float> const x(10), matrices(4 * 30);
  std::vector<float> y(20);  // as many bytes as the router weight that it stands for
  std::vector<std::byte> scratch(layer::workspace_bytes(1));
  layer::args args{};
  args.tokens = layer::rows(x.data(), 1);
  args.weights.up_proj = layer::in_proj(matrices.data());
  args.weights.down_proj = layer::out_proj(matrices.data());
  args.output = layer::rows(y.data(), 1);
  args.workspace = scratch;
  CHECK_THROWS_WITH(layer::forward(args),
                    "switchyard: layer::forward, weights.router.weight: expected [experts, hidden] bfloat16, got a "
                    "null pointer");
  args.weights.router.weight = reinterpret_cast<sy::bfloat16 const*>(y.data());
  CHECK_THROWS_WITH(layer::forward(args),
                    "switchyard: layer::forward, output: expected memory apart from all else that the call reads and "
                    "writes, got memory that overlaps the router's weight");
}
