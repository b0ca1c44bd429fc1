#include <switchyard/router/precomputed.hpp>
#include <switchyard/router/shared.hpp>
#include <switchyard/router/sparsemixer.hpp>
#include <switchyard/router/switch_top1.hpp>
#include <switchyard/router/top_k.hpp>
#include <switchyard/router/wrappers.hpp>

#include <cmath>
#include <cstddef>
#include <tuple>
#include <utility>
#include <vector>

#include "catch.hpp"

namespace sy = switchyard;
using namespace switchyard::router;
using selection::group_score;

namespace {

/// What a router decides, with sizes of run time.
struct decided {
  std::vector<int> experts;
  std::vector<float> weights;
  float priority;
};

template <class Router, int TopK, std::size_t Experts>
decided route(float const (&logits)[Experts], sy::router_weights const& weights = {}) {
  sy::per_expert<Experts, sy::serial_lanes> mine;
  for (std::size_t e = 0; e < Experts; ++e) mine.value[e] = logits[e];
  sy::route<TopK> const r = Router::template select<TopK>(sy::serial_lanes{}, mine, weights);
  return {{r.expert, r.expert + TopK}, {r.weight, r.weight + TopK}, r.priority};
}

using ids = std::vector<int>;

void check_weights(decided const& got, std::vector<double> const& expected) {
  REQUIRE(got.weights.size() == expected.size());
  for (std::size_t k = 0; k < expected.size(); ++k) {
    CAPTURE(k);
    CHECK(got.weights[k] == Catch::Approx(expected[k]).epsilon(1e-5));
  }
}

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

constexpr float closed = -sy::infinity;

using whole_routers = std::tuple<softmax_top_k, softmax_top_k_raw, top_k_softmax, sigmoid_top_k, sigma_moe,
                                 top_k<scores::sqrt_softplus, selection::best, weighting::sum>,
                                 top_k<scores::softmax, selection::best, weighting::l2>,
                                 top_k<scores::sigmoid, selection::best, weighting::sum>>;
using softmax_routers = std::tuple<softmax_top_k, softmax_top_k_raw, top_k_softmax, sparsemixer<>>;
using routers_of_two = std::tuple<softmax_top_k, softmax_top_k_raw, top_k_softmax, sigmoid_top_k, sparsemixer<>,
                                  scaled<on_input<softmax_top_k>, 2>>;

}  // namespace

TEMPLATE_LIST_TEST_CASE("equal logits go to the lowest ids", "[router]", routers_of_two) {
  CHECK(route<TestType, 2>({0.5f, 0.5f, 0.5f, 0.5f}).experts == ids{0, 1});
  CHECK(route<TestType, 2>({0.5f, 0.75f, 0.5f, 0.75f}).experts == ids{1, 3});
  CHECK(route<TestType, 2>({0.5f, 0.5f, 0.75f, 0.5f}).experts == ids{2, 0});
}

TEMPLATE_LIST_TEST_CASE("one expert that dominates is first and has nearly all the weight", "[router]",
                        softmax_routers) {
  decided const r = route<TestType, 2>({-1.0f, 0.0f, 60.0f, -2.0f});
  CHECK(r.experts == ids{2, 1});
  CHECK(r.weights[0] == Catch::Approx(1.0));
}

TEMPLATE_LIST_TEST_CASE("a closed expert is never chosen", "[router]", whole_routers) {
  decided const two = route<TestType, 2>({closed, -50.0f, closed, -40.0f});
  CHECK(two.experts == ids{3, 1});
  for (float w : two.weights) CHECK(std::isfinite(w));
  decided const three = route<TestType, 3>({closed, -1.0f, closed, 2.0f});
  CHECK(three.experts == ids{3, 1, -1});
  CHECK(three.weights[2] == 0.0f);
}

TEMPLATE_LIST_TEST_CASE("with top_k = experts every expert is chosen once", "[router]", whole_routers) {
  CHECK(route<TestType, 4>({1.0f, 3.0f, 2.0f, 3.0f}).experts == ids{1, 3, 2, 0});
  CHECK(route<TestType, 1>({-7.0f}).experts == ids{0});
}

TEST_CASE("the published example of Switch", "[router]") {
  float const logits[5][2] = {{2, 0}, {1, 0}, {0.5f, 0}, {0, 1}, {3, 0}};
  double const weight[] = {0.880797, 0.731059, 0.622459, 0.731059, 0.952574};
  for (int t = 0; t < 5; ++t) {
    decided const r = route<switch_top1, 1>(logits[t]);
    CHECK(r.experts == ids{t == 3 ? 1 : 0});
    check_weights(r, {weight[t]});
    CHECK(r.priority == r.weights[0]);
  }
}

TEST_CASE("weights by hand: softmax, before and after the choice", "[router]") {
  // exp: 1, 2, 4, 1; sum 8
  float const ln2 = 0.69314718f;
  float const logits[4] = {0.0f, ln2, 2 * ln2, 0.0f};
  decided const renormalised = route<softmax_top_k, 2>(logits);
  CHECK(renormalised.experts == ids{2, 1});
  check_weights(renormalised, {2.0 / 3, 1.0 / 3});
  CHECK(renormalised.priority == Catch::Approx(0.5));  // before normalising
  check_weights(route<softmax_top_k_raw, 2>(logits), {0.5, 0.25});
  check_weights(route<top_k_softmax, 2>(logits), {2.0 / 3, 1.0 / 3});
  check_weights(route<top_k<scores::softmax, selection::best, weighting::l2>, 2>(logits),
                {2.0 / std::sqrt(5.0), 1.0 / std::sqrt(5.0)});
  check_weights(route<top_k<scores::softmax, selection::best, weighting::sum>, 3>(logits), {4.0 / 7, 2.0 / 7, 1.0 / 7});
}

TEST_CASE("weights by hand: sigmoid", "[router]") {
  float const logits[4] = {0.0f, 2.0f, -1.0f, 1.0f};
  double const a = sigmoid(2), b = sigmoid(1);
  check_weights(route<sigmoid_top_k, 2>(logits), {a, b});
  check_weights(route<top_k<scores::sigmoid, selection::best, weighting::sum>, 2>(logits), {a / (a + b), b / (a + b)});
  check_weights(route<sigma_moe, 2>(logits), {a, b});
  check_weights(route<scaled<sigma_moe, 5, 2>, 2>(logits), {2.5 * a, 2.5 * b});
  CHECK(route<scaled<sigma_moe, 5, 2>, 2>(logits).priority == Catch::Approx(a));
  CHECK(route<sigmoid_top_k, 2>(logits).priority == 2.0f);  // what it chooses by
}

TEST_CASE("weights by hand: the square root of softplus", "[router]") {
  // softplus(0) = ln 2, softplus(ln(e^4 - 1)) = 4
  using router = top_k<scores::sqrt_softplus, selection::best, weighting::as_scored>;
  check_weights(route<router, 2>({0.0f, 3.98151544f, -1.0f}), {2.0, 0.83255461});
  // Far below zero it is exp(logit / 2), long after the exponential itself has vanished; far above the root of the logit.
  check_weights(route<router, 3>({-16.9f, -17.1f, -150.0f}), {std::exp(-8.45), std::exp(-8.55), std::exp(-75.0)});
  check_weights(route<router, 2>({1e30f, 400.0f, -1.0f}), {1e15, 20.0});
}

TEST_CASE("where sigmoids round to the same number, Llama 4 chooses by the logits and sigma-MoE by the id",
          "[router]") {
  for (auto [low, high] : {std::pair{16.0f, 16.5f}, {17.0f, 18.0f}, {25.0f, 40.0f}, {-110.0f, -104.0f}}) {
    CAPTURE(low, high);
    float const logits[6] = {low - 1.0f, low - 2.0f, low, low - 3.0f, low - 4.0f, high};
    decided const llama = route<sigmoid_top_k, 2>(logits);
    CHECK(llama.experts == ids{5, 2});
    CHECK(llama.weights[0] == Catch::Approx(sigmoid(high)).epsilon(1e-5).margin(1e-38));
    CHECK(route<top_k<scores::logits, selection::best, weighting::sigmoid>, 2>(logits).experts == llama.experts);
  }
  CHECK(route<sigma_moe, 1>({15.0f, 14.0f, 16.0f, 13.0f, 12.0f, 16.5f}).experts == ids{2});
  CHECK(route<sigma_moe, 1>({24.0f, 23.0f, 25.0f, 22.0f, 21.0f, 40.0f}).experts == ids{0});
}

TEST_CASE("softmax chooses by the logits where probabilities vanish or are denormal", "[router]") {
  float const logits[4] = {0.0f, -95.0f, -90.0f, -200.0f};
  for (ids const& chosen : {route<softmax_top_k, 3>(logits).experts, route<softmax_top_k_raw, 3>(logits).experts,
                            route<top_k_softmax, 3>(logits).experts}) {
    CHECK(chosen == ids{0, 2, 1});
  }
  using grouped = top_k<scores::softmax, selection::grouped<2, 1, group_score::max>, weighting::as_scored>;
  CHECK(route<grouped, 2>({0.0f, -200.0f, -150.0f, -150.0f}).experts == ids{0, 1});
}

TEST_CASE("scores that are all zero give weights of zero, not NaN", "[router]") {
  decided const r = route<top_k<scores::sigmoid, selection::best, weighting::sum>, 2>({-200.0f, -300.0f, -400.0f});
  CHECK(r.weights == std::vector<float>{0.0f, 0.0f});
}

TEST_CASE("scores whose squares vanish are divided by their Euclidean norm all the same", "[router]") {
  using router = top_k<scores::sigmoid, selection::best, weighting::l2>;
  for (float logit : {-25.0f, -40.0f, -60.0f, -80.0f}) {
    CAPTURE(logit);
    CHECK(route<router, 1>({logit, logit - 1.0f, logit - 2.0f}).weights == std::vector<float>{1.0f});
    check_weights(route<router, 2>({logit, logit, logit - 2.0f}), {std::sqrt(0.5), std::sqrt(0.5)});
    double const second = std::exp(-1.0), norm = std::sqrt(1.0 + second * second);
    check_weights(route<router, 2>({logit - 1.0f, logit, logit - 2.0f}), {1.0 / norm, second / norm});
  }
  CHECK(route<router, 2>({-200.0f, -300.0f, -400.0f}).weights == std::vector<float>{0.0f, 0.0f});
}

TEST_CASE("large logits do not overflow", "[router]") {
  check_weights(route<softmax_top_k, 2>({1e30f, 1e30f, -1e30f}), {0.5, 0.5});
  check_weights(route<top_k_softmax, 2>({1e38f, -1e38f, -3e38f}), {1.0, 0.0});
  check_weights(route<sigmoid_top_k, 2>({1e38f, -1e38f, -3e38f}), {1.0, 0.0});
}

TEST_CASE("a correction bias moves the choice and not the weights", "[router]") {
  using router = top_k<scores::sigmoid, selection::corrected, weighting::as_scored>;
  float const logits[4] = {2.0f, 1.0f, 0.0f, -1.0f};
  float const none[4] = {}, away[4] = {-1.0f, 0.0f, 0.0f, 0.5f};
  CHECK(route<router, 2>(logits, {.correction_bias = none}).experts == ids{0, 1});
  decided const moved = route<router, 2>(logits, {.correction_bias = away});
  CHECK(moved.experts == ids{3, 1});
  check_weights(moved, {sigmoid(-1), sigmoid(1)});
  CHECK(moved.priority == Catch::Approx(sigmoid(-1)));
}

TEST_CASE("a correction bias does not open a closed expert", "[router]") {
  using router = top_k<scores::sigmoid, selection::corrected, weighting::sum>;
  float const correction[4] = {0.0f, 100.0f, 0.0f, 0.0f};
  CHECK(route<router, 2>({-1.0f, closed, -2.0f, -3.0f}, {.correction_bias = correction}).experts == ids{0, 2});
}

TEST_CASE("groups judged by their best expert", "[router]") {
  using router = top_k<scores::logits, selection::grouped<4, 2, group_score::max>, weighting::as_scored>;
  // groups {5, 0} {4, 4} {6, 0} {3, 3}: the best are groups 2 and 0
  decided const r = route<router, 3>({5, 0, 4, 4, 6, 0, 3, 3});
  CHECK(r.experts == ids{4, 0, 1});
  CHECK(r.weights == std::vector<float>{6.0f, 5.0f, 0.0f});
}

TEST_CASE("groups judged by the sum of their two best experts", "[router]") {
  using router = top_k<scores::logits, selection::grouped<4, 2, group_score::top2_sum>, weighting::as_scored>;
  // sums 5, 8, 6, 6.5: the best are groups 1 and 3
  CHECK(route<router, 3>({5, 0, 4, 4, 6, 0, 3, 3.5f}).experts == ids{2, 3, 7});
  using wide = top_k<scores::logits, selection::grouped<2, 1, group_score::top2_sum>, weighting::as_scored>;
  // of three experts only two count: 9 + 1 against 6 + 5
  CHECK(route<wide, 2>({9, 1, 1, 4, 6, 5}).experts == ids{4, 5});
}

TEST_CASE("a tie of groups goes to the lower group", "[router]") {
  using router = top_k<scores::softmax, selection::grouped<3, 1, group_score::max>, weighting::as_scored>;
  CHECK(route<router, 2>({0, 1, 1, 0, 1, 0}).experts == ids{1, 0});
}

TEST_CASE("experts of groups that are not kept are not chosen, though their scores are higher", "[router]") {
  using router =
      top_k<scores::sigmoid, selection::grouped<2, 1, group_score::max, selection::corrected>, weighting::sum>;
  float const correction[4] = {-3.0f, -3.0f, -2.0f, -5.0f};  // every key is negative
  decided const r = route<router, 2>({1, 1, 0, 0}, {.correction_bias = correction});
  CHECK(r.experts == ids{2, 3});
  check_weights(r, {0.5, 0.5});
}

TEST_CASE("sparsemixer weighs each choice among the experts close to it", "[router]") {
  // Jitter 1/10, so experts within 20 % are close. First 10: only 9 is close ((10 - 9) / 10 <= 0.2 < (10 - 7) / 10).
  // Second 9, without the first: 7.5 is close, 7 is not.
  decided const r = route<sparsemixer<1, 10>, 2>({7.0f, 10.0f, 7.5f, 9.0f});
  CHECK(r.experts == ids{1, 3});
  check_weights(r, {1.0 / (1.0 + std::exp(-1.0)), 1.0 / (1.0 + std::exp(-1.5))});
  CHECK(r.priority == r.weights[0]);
}

TEST_CASE("sparsemixer measures distance by the larger of |logit| and the best", "[router]") {
  // Best 1; the second is -4: (1 + 4) / max(4, 1) = 1.25 <= 2 * 0.75, so it is close.
  check_weights(route<sparsemixer<3, 4>, 2>({1.0f, -4.0f}), {1.0 / (1.0 + std::exp(-5.0)), 1.0});
  // All negative: best -1, other -1.5: (-1 + 1.5) / max(1.5, -1) = 1/3.
  check_weights(route<sparsemixer<1, 4>, 2>({-1.5f, -1.0f}), {1.0 / (1.0 + std::exp(-0.5)), 1.0});
  check_weights(route<sparsemixer<1, 8>, 2>({-1.5f, -1.0f}), {1.0, 1.0});
}

TEST_CASE("sparsemixer with equal logits shares the weight among the experts left", "[router]") {
  decided const r = route<sparsemixer<>, 2>({3.0f, 3.0f, 3.0f, 3.0f});
  CHECK(r.experts == ids{0, 1});
  check_weights(r, {1.0 / 4, 1.0 / 3});
}

TEST_CASE("wrappers change one trait each and keep the others", "[router]") {
  using all = shared<with_bias<on_input<top_k<scores::sigmoid, selection::corrected, weighting::sum>>>>;
  CHECK(all::traits.owner == sy::router_owner::model);
  CHECK(all::traits.bias);
  CHECK(all::traits.weighs_input);
  CHECK(all::traits.correction_bias);
  CHECK(sy::makes_logits<all>);
  CHECK(softmax_top_k::traits.owner == sy::router_owner::layer);
  CHECK_FALSE(softmax_top_k::traits.bias);
  CHECK_FALSE(softmax_top_k::traits.weighs_input);
  CHECK_FALSE(softmax_top_k::traits.correction_bias);
  CHECK_FALSE(sy::makes_logits<on_input<precomputed>>);
  CHECK(top_k<scores::softmax, selection::grouped<2, 1, group_score::max, selection::corrected>, weighting::sum>::traits
            .correction_bias);
}

TEST_CASE("names of routers tell how they are put together", "[router]") {
  CHECK(switch_top1::name == "switch_top1");
  CHECK(precomputed::name == "precomputed");
  CHECK(sparsemixer<>::name == "sparsemixer<1:100>");
  CHECK(shared<with_bias<softmax_top_k>>::name == "shared<with_bias<softmax_top_k>>");
  CHECK(on_input<sigmoid_top_k>::name == "on_input<sigmoid_top_k>");
  CHECK(scaled<softmax_top_k_raw, 16>::name == "scaled<softmax_top_k_raw,16>");
  CHECK(
      scaled<
          top_k<scores::sigmoid, selection::grouped<8, 4, group_score::top2_sum, selection::corrected>, weighting::sum>,
          5, 2>::name == "scaled<top_k(sigmoid,grouped<8,4,top2_sum,corrected>,sum),5:2>");
  CHECK(top_k<scores::logits, selection::best, weighting::softmax>::name == "top_k(logits,best,softmax)");
  CHECK(top_k<scores::softmax, selection::grouped<2, 1, group_score::max>, weighting::l2>::name ==
        "top_k(softmax,grouped<2,1,max,best>,l2)");
}
