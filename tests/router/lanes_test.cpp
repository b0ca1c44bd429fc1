#include "router/lanes.hpp"

#include <switchyard/router/shared.hpp>
#include <switchyard/router/sparsemixer.hpp>
#include <switchyard/router/switch_top1.hpp>
#include <switchyard/router/top_k.hpp>
#include <switchyard/router/wrappers.hpp>

#include <algorithm>
#include <cmath>
#include <random>
#include <stdexcept>
#include <vector>

#include "catch.hpp"

namespace sy = switchyard;
using namespace switchyard::router;
using selection::group_score;

namespace {

bool close(float a, float b) { return std::abs(a - b) <= 1e-6f * std::max(std::abs(a), std::abs(b)); }

/// Routes one token on one lane and on a group; ids have to be equal and weights within 1e-6, on every lane.
template <class Router, int Experts, int TopK, int Size>
bool agree(std::vector<float> const& logits, sy::router_weights const& weights) {
  auto const select = [&](auto lanes) {
    return Router::template select<TopK>(lanes, emulated::deal<Experts>(lanes, logits), weights);
  };
  sy::route<TopK> const expected = select(sy::serial_lanes{});
  for (sy::route<TopK> const& got : emulated::run<Size>(select)) {
    if (!close(got.priority, expected.priority)) return false;
    for (int k = 0; k < TopK; ++k) {
      if (got.expert[k] != expected.expert[k] || !close(got.weight[k], expected.weight[k])) return false;
    }
  }
  return true;
}

template <class Router, int Experts, int TopK>
void check() {
  INFO(Router::name << " " << TopK << " of " << Experts);
  std::mt19937 random(Experts * 100 + TopK);
  auto const numbers = [&](int steps) {  // few different values make ties
    std::vector<float> values(Experts);
    for (float& v : values)
      v = static_cast<float>(static_cast<int>(random() % steps) - steps / 2) * 6.0f / static_cast<float>(steps);
    return values;
  };
  for (int steps : {1, 3, 20, 100000}) {
    for (int repeat = 0; repeat < 5; ++repeat) {
      std::vector<float> logits = numbers(steps);
      std::vector<float> const correction = numbers(steps);
      sy::router_weights const weights{.correction_bias = correction.data()};
      for (bool closing : {false, true}) {
        if (closing && Experts >= TopK + 2) logits[0] = logits[Experts - 1] = -sy::infinity;
        CHECK(agree<Router, Experts, TopK, 2>(logits, weights));
        CHECK(agree<Router, Experts, TopK, 4>(logits, weights));
        CHECK(agree<Router, Experts, TopK, 32>(logits, weights));
      }
    }
  }
}

template <int Groups, int KeptGroups, group_score Judge, class Inner = selection::best>
using grouped = selection::grouped<Groups, KeptGroups, Judge, Inner>;

}  // namespace

TEST_CASE("routers choose the same on a group of lanes as on one", "[router]") {
  check<switch_top1, 8, 1>();
  check<switch_top1, 1, 1>();
  check<softmax_top_k, 8, 2>();
  check<softmax_top_k, 40, 8>();
  check<softmax_top_k, 3, 3>();
  check<softmax_top_k_raw, 64, 8>();
  check<top_k_softmax, 33, 4>();
  check<sigmoid_top_k, 16, 2>();
  check<scaled<on_input<with_bias<shared<sigmoid_top_k>>>, 5, 2>, 5, 2>();
}

TEST_CASE("composed routers choose the same on a group of lanes as on one", "[router]") {
  check<top_k<scores::softmax, selection::best, weighting::l2>, 7, 3>();
  check<top_k<scores::sigmoid, selection::corrected, weighting::sum>, 13, 4>();
  check<top_k<scores::softmax, grouped<4, 2, group_score::max>, weighting::as_scored>, 20, 6>();
  check<top_k<scores::softmax, grouped<3, 3, group_score::max>, weighting::as_scored>, 3, 2>();
  check<top_k<scores::sigmoid, grouped<8, 4, group_score::top2_sum, selection::corrected>, weighting::sum>, 64, 8>();
}

TEST_CASE("sparsemixer chooses the same on a group of lanes as on one", "[router]") {
  check<sparsemixer<>, 16, 2>();
  check<sparsemixer<1, 4>, 5, 2>();
}

TEST_CASE("a value can be asked of every expert on every lane", "[router]") {
  std::vector<float> const logits{4, 8, 15, 16, 23, 42};
  for (int id = 0; id < 6; ++id) {
    for (float v : emulated::run<4>([&](auto lanes) { return emulated::deal<6>(lanes, logits).at(lanes, id); })) {
      CHECK(v == logits[static_cast<std::size_t>(id)]);
    }
  }
}

TEST_CASE("the emulated group notices lanes that part", "[router]") {
  CHECK_THROWS_AS(emulated::run<2>([](auto lanes) { return lanes.rank() == 0 ? lanes.sum(1.0f) : lanes.max(1.0f); }),
                  std::logic_error);
  CHECK_THROWS_AS(emulated::run<2>([](auto lanes) { return lanes.rank() == 0 ? 1.0f : lanes.sum(1.0f); }),
                  std::logic_error);
  CHECK(emulated::run<4>([](auto lanes) { return lanes.sum(static_cast<float>(lanes.rank())); }) ==
        std::vector<float>(4, 6.0f));
}

TEST_CASE("the order of choice is total: larger values first, of equal ones the lower id", "[router]") {
  CHECK(sy::precedes({2.0f, 5}, {1.0f, 0}));
  CHECK(sy::precedes({1.0f, 0}, {1.0f, 5}));
  CHECK_FALSE(sy::precedes({1.0f, 5}, {1.0f, 5}));
  CHECK(sy::precedes({0.0f, 0}, {-0.0f, 1}));
  CHECK(sy::precedes(sy::before_all, {sy::infinity, 0}));
  CHECK(sy::precedes({-sy::infinity, 1000}, sy::after_all));
}

TEST_CASE("one lane that has many experts takes them in the order of one choice after the other", "[router]") {
  constexpr int experts = 43, top_k = 9;
  float const few[] = {-sy::infinity, -1.0f, 0.5f, 0.5f, 2.0f, std::nanf("")};
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    // The first rounds have fewer open experts than choices.
    int const kinds = round < 100 ? 2 : 6;
    sy::per_expert<experts, sy::serial_lanes> values;
    for (float& v : values.value) v = random() % 8 == 0 || round >= 100 ? few[random() % kinds] : few[0];
    auto const chosen = take_top_k<top_k>(sy::serial_lanes{}, values);
    sy::candidate last = sy::before_all;
    for (sy::candidate const& choice : chosen.choice) {
      last = next_choice(sy::serial_lanes{}, values, last);
      CHECK((choice.id == last.id && choice.value == last.value));
    }
  }
}
