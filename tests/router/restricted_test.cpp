#include <switchyard/router/restricted.hpp>
#include <switchyard/switchyard.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "catch.hpp"
#include "router/lanes.hpp"

/// A restricted router by hand. A list of layers.hpp compares it with the reference, a golden file with the published code.
namespace sy = switchyard;
using namespace switchyard::router;

namespace {

using bytes = std::vector<std::uint8_t>;

template <class Router, int TopK, int Experts>
sy::route<TopK> decide(std::vector<float> const& logits, bytes const& allowed) {
  return sy::decide<Router, TopK>(sy::serial_lanes{}, emulated::deal<Experts>(sy::serial_lanes{}, logits), {},
                                  sy::allowed_experts{allowed.empty() ? nullptr : allowed.data()}, 5);
}

}  // namespace

TEST_CASE("the best of the allowed experts has its weight of the softmax over all", "[router]") {
  std::vector<float> const logits{0.0f, std::log(2.0f), std::log(3.0f), std::log(4.0f)};  // softmax 0.1 to 0.4
  auto const chosen = [&](bytes const& allowed) { return decide<restricted<switch_top1>, 1, 4>(logits, allowed); };
  CHECK(chosen({1, 1, 1, 0}).expert[0] == 2);
  CHECK(chosen({1, 1, 1, 0}).weight[0] == Catch::Approx(0.3));
  CHECK(chosen({1, 1, 0, 0}).expert[0] == 1);
  CHECK(chosen({1, 1, 0, 0}).weight[0] == Catch::Approx(0.2));
  CHECK(chosen({255, 0, 0, 0}).weight[0] == Catch::Approx(0.1));
  CHECK(chosen({1, 1, 1, 1}).expert[0] == 3);
  // A weighting that divides by a sum takes that of the chosen; with fewer allowed than chosen, others follow with no weight.
  sy::route<2> const two = decide<restricted<softmax_top_k>, 2, 4>(logits, {1, 0, 1, 0});
  CHECK(two.expert[0] == 2);
  CHECK(two.expert[1] == 0);
  CHECK(two.weight[0] == Catch::Approx(0.75));
  CHECK(two.weight[1] == Catch::Approx(0.25));
  sy::route<2> const one = decide<scaled<restricted<softmax_top_k>, 5, 2>, 2, 4>(logits, {0, 1, 0, 0});
  CHECK(one.expert[0] == 1);
  CHECK(one.expert[1] == 3);
  CHECK(one.weight[0] == 2.5f);
  CHECK(one.weight[1] == 0.0f);
}

TEST_CASE("without an allowed expert a router keeps its own choice", "[router]") {
  std::vector<float> const logits{0.5f, -1.0f, 2.0f, 0.25f, 1.0f};
  sy::route<2> const own =
      sy::decide<softmax_top_k_raw, 2>(sy::serial_lanes{}, emulated::deal<5>(sy::serial_lanes{}, logits), {});
  for (bytes const& allowed : {bytes{}, bytes{0, 0, 0, 0, 0}, bytes{1, 1, 1, 1, 1}}) {
    sy::route<2> const got = decide<restricted<softmax_top_k_raw>, 2, 5>(logits, allowed);
    for (int k = 0; k < 2; ++k) {
      CHECK(got.expert[k] == own.expert[k]);
      CHECK(got.weight[k] == own.weight[k]);
    }
    CHECK(got.priority == own.priority);
  }
}

TEST_CASE("every group of lanes is restricted to the same experts", "[router]") {
  std::mt19937 random(6);
  for (int round = 0; round < 100; ++round) {
    constexpr int experts = 21;
    std::vector<float> logits;
    bytes allowed;
    for (int e = 0; e < experts; ++e) {
      logits.push_back(static_cast<float>(random() % 16) / 8.0f);  // with ties
      allowed.push_back(random() % 8 == 0 ? 1 : 0);                // sometimes none, and often fewer than four
    }
    auto const choice = [&](auto lanes) {
      return sy::decide<restricted<softmax_top_k>, 4>(lanes, emulated::deal<experts>(lanes, logits), {},
                                                      sy::allowed_experts{allowed.data()}, 0);
    };
    sy::route<4> const alone = choice(sy::serial_lanes{});
    for (auto const& mine : emulated::run<8>(choice)) {
      for (int k = 0; k < 4; ++k) {
        CHECK(mine.expert[k] == alone.expert[k]);
        CHECK(std::abs(mine.weight[k] - alone.weight[k]) <= 1e-6f);
      }
    }
  }
}

TEST_CASE("a layer is restricted by its call", "[router]") {
  using layer =
      sy::layer<sy::shape{1, 1, 4, 1}, restricted<switch_top1>, sy::capacity::dropless, sy::expert::mlp<sy::relu>>;
  float const x[] = {1.0f, -1.0f}, router[] = {-0.5f, 2.0f, 0.25f, -1.0f}, up[] = {1, 2, 3, 4}, down[] = {1, 1, 1, 1};
  float y[2];
  std::int32_t experts[2];
  std::vector<std::byte> scratch(layer::workspace_bytes(2));
  layer::args args{};
  args.tokens = layer::rows(x, 2);
  args.weights.router.weight = router;
  args.weights.up_proj = layer::in_proj(up);
  args.weights.down_proj = layer::out_proj(down);
  args.output = layer::rows(y, 2);
  args.workspace = scratch;
  args.decisions.experts = experts;
  layer::forward(args);
  CHECK((experts[0] == 1 && experts[1] == 3));
  std::uint8_t allowed[] = {1, 0, 1, 0};
  args.inputs = {.allowed = allowed};
  layer::forward(args);
  CHECK((experts[0] == 2 && experts[1] == 0));
  double total = 0.0;
  for (float logit : router) total += std::exp(static_cast<double>(logit));
  CHECK(y[0] == Catch::Approx(3.0 * std::exp(0.25) / total));
  CHECK(std::string(layer::router::name) == "restricted<switch_top1>");
  args.decisions.experts = reinterpret_cast<std::int32_t*>(&allowed);
  CHECK_THROWS_AS(layer::forward(args), sy::error);
}
