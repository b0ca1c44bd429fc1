#include <switchyard/capacity/dropless.hpp>
#include <switchyard/capacity/fixed.hpp>
#include <switchyard/capacity/wrappers.hpp>
#include <switchyard/dispatch/plan.hpp>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "catch.hpp"

namespace sy = switchyard;

namespace {

constexpr sy::shape dims{.hidden = 1, .intermediate = 1, .experts = 5, .top_k = 3};

/// Decisions, and everything that make_plan writes.
struct planned {
  std::int64_t tokens, tokens_per_group = 0;
  std::vector<std::int32_t> experts;
  std::vector<float> weights, priority;
  std::vector<std::uint8_t> dropped;
  std::vector<std::int64_t> load = std::vector<std::int64_t>(dims.experts);
  std::vector<std::int32_t> used = std::vector<std::int32_t>(dims.experts);
  std::vector<std::int32_t> order, offsets = std::vector<std::int32_t>(dims.experts + 1), pair_of, row_of;

  std::int64_t pairs() const { return tokens * dims.top_k; }

  /// Tokens with three different experts each, a few of them padding; priorities of which many are equal.
  planned(std::int64_t count, unsigned seed) : tokens(count) {
    std::mt19937 random(seed);
    for (std::int64_t t = 0; t < tokens; ++t) {
      std::int32_t ids[dims.experts] = {0, 1, 2, 3, 4};
      for (int k = 0; k < dims.top_k; ++k) std::swap(ids[k], ids[k + random() % (dims.experts - k)]);
      bool const padding = random() % 8 == 0;
      for (int k = 0; k < dims.top_k; ++k) {
        experts.push_back(padding ? -1 : ids[k]);
        weights.push_back(static_cast<float>(random() % 100 + 1) / 64.0f);
      }
      priority.push_back(static_cast<float>(random() % 20) / 16.0f);
    }
    dropped.assign(pairs(), 0xcc);
    order.assign(tokens, -7);
    pair_of.assign(pairs(), -7);
    row_of.assign(pairs(), -7);
  }

  template <class Capacity>
  planned& plan() {
    sy::dispatch::make_plan<Capacity, dims>({.tokens = tokens,
                                             .tokens_per_group = tokens_per_group,
                                             .experts = experts.data(),
                                             .weights = weights.data(),
                                             .priority = priority.data(),
                                             .dropped = dropped.data(),
                                             .load = load.data(),
                                             .used = used.data(),
                                             .order = order.data()},
                                            {offsets.data(), pair_of.data(), row_of.data()});
    return *this;
  }

  /// What a simulation drops: pairs stand in one line, in the given order, and take slots until there are none.
  std::vector<std::uint8_t> simulate(sy::queue order_of, std::int64_t slots) const {
    std::vector<std::uint8_t> result(pairs(), 0);
    std::int64_t const size = tokens_per_group > 0 ? tokens_per_group : std::max<std::int64_t>(tokens, 1);
    for (std::int64_t begin = 0; begin < tokens; begin += size) {
      std::vector<std::int64_t> line;
      for (std::int64_t t = begin; t < std::min(begin + size, tokens); ++t) {
        for (int k = 0; k < dims.top_k; ++k) line.push_back(t * dims.top_k + k);
      }
      std::stable_sort(line.begin(), line.end(), [&](std::int64_t a, std::int64_t b) {
        auto const choice = [&](std::int64_t pair) { return pair % dims.top_k; };
        auto const first = [&](std::int64_t pair) { return priority[pair / dims.top_k]; };
        if (order_of == sy::queue::token_order) return false;
        if (choice(a) != choice(b)) return choice(a) < choice(b);
        return order_of == sy::queue::priority && first(a) > first(b);
      });
      std::vector<std::int64_t> left(dims.experts, slots);
      for (std::int64_t pair : line) {
        if (experts[pair] < 0) continue;
        if (left[experts[pair]] > 0) {
          --left[experts[pair]];
        } else {
          result[pair] = 1;
        }
      }
    }
    return result;
  }
};

template <class Capacity>
void check_dropped(std::int64_t slots) {
  for (std::int64_t tokens : {0, 1, 2, 30, 133}) {
    for (std::int64_t tokens_per_group : {0, 1, 10, 1000}) {
      CAPTURE(tokens, tokens_per_group);
      planned p(tokens, static_cast<unsigned>(tokens));
      p.tokens_per_group = tokens_per_group;
      p.plan<Capacity>();
      CHECK(p.dropped == p.simulate(Capacity::traits.order, slots));
    }
  }
}

template <class Capacity>
void check_rows(planned& p) {
  p.plan<Capacity>();
  // Each kept pair has one row, and each row the pair that it serves: permute and unpermute are inverse.
  std::vector<std::int64_t> kept(dims.experts), chosen(dims.experts);
  for (std::int64_t pair = 0; pair < p.pairs(); ++pair) {
    std::int32_t const expert = p.experts[pair];
    if (expert >= 0) ++chosen[expert];
    if (expert < 0 || p.dropped[pair]) {
      CHECK(p.row_of[pair] == -1);
    } else {
      ++kept[expert];
      std::int32_t const row = p.row_of[pair];
      REQUIRE((row >= p.offsets[expert] && row < p.offsets[expert + 1]));
      CHECK(p.pair_of[row] == pair);
    }
  }
  CHECK(p.load == chosen);
  CHECK(p.offsets[0] == 0);
  for (int e = 0; e < dims.experts; ++e) {
    CHECK(p.offsets[e + 1] - p.offsets[e] == kept[e]);
    CHECK(std::is_sorted(p.pair_of.begin() + p.offsets[e], p.pair_of.begin() + p.offsets[e + 1]));
  }
}

using sy::capacity::fixed;
using sy::capacity::queued;

}  // namespace

TEST_CASE("pairs are dropped as in a simulation of the queue", "[dispatch]") {
  check_dropped<fixed<0>>(0);
  check_dropped<fixed<1>>(1);
  check_dropped<queued<fixed<4>, sy::queue::token_order>>(4);
  check_dropped<queued<fixed<4>, sy::queue::choice_order>>(4);
  check_dropped<queued<fixed<4>, sy::queue::priority>>(4);
  check_dropped<queued<fixed<15>, sy::queue::priority>>(15);
  check_dropped<fixed<100000>>(100000);
}

TEST_CASE("rows of one expert stand together in token order, and lead back to their pairs", "[dispatch]") {
  for (std::int64_t tokens : {0, 1, 40, 133}) {
    CAPTURE(tokens);
    planned p(tokens, 1);
    check_rows<sy::capacity::dropless>(p);
    check_rows<fixed<6>>(p);
    check_rows<queued<fixed<6>, sy::queue::priority>>(p);
    check_rows<fixed<0>>(p);
  }
}

TEST_CASE("dropless drops nothing and leaves the weights", "[dispatch]") {
  planned p(133, 2);
  std::vector<float> const before = p.weights;
  p.plan<sy::capacity::dropless>();
  CHECK(std::count(p.dropped.begin(), p.dropped.end(), 0) == p.pairs());
  CHECK(p.weights == before);
}

TEST_CASE("all tokens may want one expert", "[dispatch]") {
  planned p(50, 3);
  for (std::int64_t pair = 0; pair < p.pairs(); ++pair) p.experts[pair] = static_cast<std::int32_t>(pair % 3 + 1);
  p.plan<fixed<7>>();
  CHECK(p.offsets == std::vector<std::int32_t>{0, 0, 7, 14, 21, 21});
  CHECK(p.load == std::vector<std::int64_t>{0, 50, 50, 50, 0});
  CHECK(p.row_of[0] == 0);
  CHECK(p.row_of[6 * 3] == 6);
  CHECK(p.row_of[7 * 3] == -1);
}

TEST_CASE("of equal priorities the earlier token goes first", "[dispatch]") {
  planned p(30, 4);
  std::fill(p.priority.begin(), p.priority.end(), 0.5f);
  p.plan<queued<fixed<4>, sy::queue::priority>>();
  CHECK(p.dropped == p.simulate(sy::queue::choice_order, 4));
}

TEST_CASE("renormalised weights are divided by the sum of those kept", "[dispatch]") {
  planned p(2, 5);
  p.experts = {0, 1, 2, 0, 1, 2};
  p.weights = {0.5f, 0.25f, 0.25f, 0.25f, 0.125f, 0.125f};
  planned all = p;
  all.plan<sy::capacity::renormalised<fixed<2>>>();
  CHECK(all.weights == std::vector<float>{0.5f, 0.25f, 0.25f, 0.5f, 0.25f, 0.25f});

  p.experts = {0, 1, 2, 0, 1, 3};  // experts 0 and 1 are full when the second token comes
  p.plan<sy::capacity::renormalised<fixed<1>>>();
  CHECK(p.dropped == std::vector<std::uint8_t>{0, 0, 0, 1, 1, 0});
  CHECK(p.weights == std::vector<float>{0.5f, 0.25f, 0.25f, 0.0f, 0.0f, 1.0f});
}

TEST_CASE("a token that lost all its pairs has weights of zero when renormalised, and none is NaN", "[dispatch]") {
  planned p(3, 6);
  p.plan<sy::capacity::renormalised<fixed<0>>>();
  for (float w : p.weights) CHECK(w == 0.0f);
}

TEST_CASE("the least sum of renormalised weights is the float epsilon", "[dispatch]") {
  planned p(1, 7);
  p.experts = {0, 1, 2};
  p.weights = {1e-9f, 0.0f, 0.0f};
  p.plan<sy::capacity::renormalised<fixed<1>>>();
  CHECK(p.weights[0] == Catch::Approx(1e-9 / 1.1920929e-7));
}
