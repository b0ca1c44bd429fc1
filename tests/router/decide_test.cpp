#include <switchyard/router/sparsemixer.hpp>
#include <switchyard/router/switch_top1.hpp>
#include <switchyard/router/top_k.hpp>
#include <switchyard/router/wrappers.hpp>

#include <cmath>
#include <cstddef>
#include <limits>
#include <tuple>

#include "catch.hpp"

namespace sy = switchyard;
using namespace switchyard::router;

namespace {

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr float closed = -sy::infinity;

template <class Router, std::size_t Experts>
sy::route<2> decide(float const (&logits)[Experts], sy::router_weights const& weights = {}) {
  sy::per_expert<Experts, sy::serial_lanes> mine;
  for (std::size_t e = 0; e < Experts; ++e) mine.value[e] = logits[e];
  return sy::decide<Router, 2>(sy::serial_lanes{}, mine, weights);
}

bool is_none(sy::route<2> const& r) {
  return r.expert[0] == -1 && r.expert[1] == -1 && std::isnan(r.weight[0]) && std::isnan(r.weight[1]) &&
         r.priority == 0.0f;
}

using corrected_sigmoid = top_k<scores::sigmoid, selection::corrected, weighting::sum>;
using in_groups =
    top_k<scores::sigmoid, selection::grouped<2, 1, selection::group_score::max, selection::corrected>, weighting::sum>;

/// One of every kind of score, and of every way to choose.
using routers = std::tuple<softmax_top_k, softmax_top_k_raw, top_k_softmax, sigmoid_top_k, sigma_moe, sparsemixer<>,
                           top_k<scores::sqrt_softplus, selection::best, weighting::sum>,
                           top_k<scores::logits, selection::best, weighting::as_scored>, scaled<softmax_top_k, 2>>;
using corrected_routers =
    std::tuple<corrected_sigmoid, in_groups, top_k<scores::softmax, selection::corrected, weighting::as_scored>,
               top_k<scores::logits, selection::corrected, weighting::softmax>>;

}  // namespace

TEMPLATE_LIST_TEST_CASE("a logit that is no number leaves a token without a route, whichever it is", "[router]",
                        routers) {
  for (float bad : {not_a_number, sy::infinity, closed}) {
    for (int e = 0; e < 4; ++e) {
      float logits[4] = {0.5f, 0.25f, -0.25f, -0.5f};
      CHECK(decide<TestType>(logits).expert[0] == 0);
      logits[e] = bad;
      CHECK(is_none(decide<TestType>(logits)));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("minus infinity in a bias closes an expert as long as enough are open", "[router]", routers) {
  using router = with_bias<TestType>;
  float const bias[4] = {closed, 0.0f, closed, 0.0f}, too_many[4] = {closed, 0.0f, closed, closed};
  float const logits[4] = {closed, 0.25f, closed, 0.3f}, few[4] = {closed, 0.25f, closed, closed};
  sy::route<2> const r = decide<router>(logits, {.bias = bias});
  CHECK(r.expert[0] == 3);
  CHECK(r.expert[1] == 1);
  CHECK(std::isfinite(r.weight[0]));
  CHECK(std::isfinite(r.weight[1]));
  CHECK(is_none(decide<router>(few, {.bias = too_many})));
  // A product that is not a number does not hide behind a bias, nor does minus infinity of another expert.
  CHECK(is_none(decide<router>({not_a_number, 0.25f, closed, 0.3f}, {.bias = bias})));
  CHECK(is_none(decide<router>({closed, closed, closed, 0.3f}, {.bias = bias})));
}

TEMPLATE_LIST_TEST_CASE("a correction bias goes by the same rule", "[router]", corrected_routers) {
  float const logits[4] = {0.5f, 0.4f, 0.3f, 0.2f};
  float const close_one[4] = {closed, 0.0f, 0.0f, 0.0f};
  for (int e : decide<TestType>({0.5f, 0.6f, 0.7f, 0.8f}, {.correction_bias = close_one}).expert) CHECK(e != 0);
  for (float bad : {not_a_number, sy::infinity}) {
    float const bias[4] = {0.0f, 0.0f, 0.0f, bad};
    CHECK(is_none(decide<TestType>(logits, {.correction_bias = bias})));
  }
  float const three_closed[4] = {closed, 0.0f, closed, closed};
  CHECK(is_none(decide<TestType>(logits, {.correction_bias = three_closed})));
}
