#include <switchyard/router/s_base.hpp>
#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "catch.hpp"
#include "reference.hpp"
#include "support/random_numbers.hpp"

/// The balance of S-BASE by hand and against double. Lists of layers.hpp compare whole layers with the reference.
namespace sy = switchyard;
using namespace switchyard::router;

namespace {

constexpr float closed = -sy::infinity;
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr sy::sinkhorn_traits correct{};

sy::sinkhorn_traits with_iterations(sy::sinkhorn_traits form, int iterations) {
  form.iterations = iterations;
  return form;
}

/// What `balance_experts` adds to each expert's logit.
struct balanced {
  int experts;
  std::vector<float> logits;
  std::vector<std::uint8_t> active = {};
  std::vector<float> router_bias = {};
  int threads = 1;

  std::vector<float> by(sy::sinkhorn_traits form) const {
    auto const width = static_cast<std::size_t>(experts);
    std::size_t const tokens = logits.size() / width, blocks = tokens / 64 + 1;
    std::vector<float> bias(width, not_a_number), most(blocks * width);
    std::vector<double> sum(blocks * width);
    std::vector<std::uint8_t> counted(tokens);
    sy::cpu_context const context = sy::cpu::resolved({.threads = threads});
    sy::cpu::balance_experts(form, logits.data(), static_cast<std::int64_t>(tokens), experts,
                             active.empty() ? nullptr : active.data(),
                             router_bias.empty() ? nullptr : router_bias.data(), context,
                             {bias.data(), most.data(), sum.data(), counted.data()});
    return bias;
  }
};

void check(std::vector<float> const& got, std::vector<double> const& expected) {
  REQUIRE(got.size() == expected.size());
  for (std::size_t e = 0; e < got.size(); ++e) CHECK(got[e] == Catch::Approx(expected[e]).margin(1e-6));
}

/// Random logits, of which some experts are larger for all tokens.
std::vector<float> uneven_logits(int tokens, int experts, double scale, unsigned seed) {
  support::random_numbers random(seed);
  std::vector<float> logits;
  for (int t = 0; t < tokens; ++t) {
    for (int e = 0; e < experts; ++e) {
      logits.push_back(static_cast<float>(scale * (random.normal() + 2.0 * e / experts)));
    }
  }
  return logits;
}

template <class Router, int TopK, int Experts>
sy::route<TopK> choose(float const* logits, float const* bias) {
  sy::per_expert<Experts, sy::serial_lanes> mine;
  for (int e = 0; e < Experts; ++e) mine.value[e] = logits[e];
  return sy::decide<Router, TopK>(sy::serial_lanes{}, mine, {.correction_bias = bias});
}

}  // namespace

TEST_CASE("Sinkhorn's iterations by hand", "[router]") {
  float const ln3 = std::log(3.0f);
  balanced const b{.experts = 2, .logits = {0.0f, 0.0f, ln3, 0.0f}};
  // The tokens' masses are (1/2, 1/2) and (3/4, 1/4): the experts have 5/4 and 3/4, and should have 1.
  check(b.by(with_iterations(correct, 1)), {std::log(4.0 / 5), std::log(4.0 / 3)});
  // Then (3/8, 5/8) and (9/14, 5/14) in those of the tokens.
  check(b.by(with_iterations(correct, 2)), {std::log(224.0 / 285), std::log(224.0 / 165)});
  // With the signs of the published code: columns of (2, 2), (12, 4), then of (20, 20), (144, 48).
  check(b.by(with_iterations(as_published, 1)), {-std::log(14.0), -std::log(6.0)});
  check(b.by(with_iterations(as_published, 2)), {-std::log(164.0), -std::log(68.0)});

  // By themselves both tokens go to expert 0; balanced, one does. Weights are the sigmoids of the logits as they are.
  for (sy::sinkhorn_traits form : {correct, as_published}) {
    std::vector<float> const bias = b.by(form);
    sy::route<1> const first = choose<s_base<>, 1, 2>(b.logits.data(), bias.data());
    sy::route<1> const second = choose<s_base<>, 1, 2>(b.logits.data() + 2, bias.data());
    CHECK(first.expert[0] == 1);
    CHECK(first.weight[0] == Catch::Approx(0.5));
    CHECK(second.expert[0] == 0);
    CHECK(second.weight[0] == Catch::Approx(0.75));
    sy::route<2> const both = choose<s_base<>, 2, 2>(b.logits.data() + 2, bias.data());
    CHECK(both.expert[0] == 0);
    CHECK(both.expert[1] == 1);
    CHECK(both.weight[1] == Catch::Approx(0.5));
  }
}

TEST_CASE("the balance of many tokens is that of double, whatever the size of the logits", "[router]") {
  for (sy::sinkhorn_traits form : {correct, as_published, sy::sinkhorn_traits{.iterations = 7}}) {
    for (int experts : {1, 5, 130}) {
      for (double scale : {1e-3, 1.0, 300.0, 1e6}) {
        balanced const b{.experts = experts, .logits = uneven_logits(200, experts, scale, 3)};
        reference::config c;
        c.experts = experts;
        c.balancing_iterations = form.iterations;
        c.balancing_subtracts = form.subtracts;
        reference::numbers const expected = reference::balancing_bias(c, {b.logits.begin(), b.logits.end()});
        std::vector<float> const got = b.by(form);
        INFO(experts << " experts, scale " << scale << ", " << form.iterations << (form.subtracts ? " published" : ""));
        double largest = 1.0;  // of the terms that are rounded
        for (double v : expected) largest = std::max(largest, std::abs(v));
        for (double z : b.logits) largest = std::max(largest, std::abs(z));
        for (std::size_t e = 0; e < got.size(); ++e) CHECK(std::abs(got[e] - expected[e]) < 1e-6 * largest);
      }
    }
  }
}

TEST_CASE("after many iterations every token has a mass of 1, and every expert its share", "[router]") {
  constexpr int tokens = 90, experts = 6;
  balanced const b{.experts = experts, .logits = uneven_logits(tokens, experts, 1.0, 4)};
  std::vector<float> const bias = b.by({.iterations = 200});
  std::vector<double> mass(experts);
  for (std::size_t t = 0; t < tokens; ++t) {
    double sum = 0.0;
    std::vector<double> of_token;
    for (std::size_t e = 0; e < experts; ++e) of_token.push_back(std::exp(double(b.logits[t * experts + e]) + bias[e]));
    for (double p : of_token) sum += p;
    for (std::size_t e = 0; e < experts; ++e) mass[e] += of_token[e] / sum;
  }
  for (double m : mass) CHECK(m == Catch::Approx(double(tokens) / experts).epsilon(1e-4));
}

TEST_CASE("balanced experts get about the same number of tokens, where others do not", "[router]") {
  constexpr int tokens = 2000, experts = 8, top_k = 2;
  balanced const b{.experts = experts, .logits = uneven_logits(tokens, experts, 1.0, 5)};
  auto const most_load = [&](std::vector<float> const& bias) {
    std::vector<int> load(experts);
    for (std::size_t t = 0; t < tokens; ++t) {
      for (int e : choose<s_base<>, top_k, experts>(b.logits.data() + t * experts, bias.data()).expert) {
        ++load[static_cast<std::size_t>(e)];
      }
    }
    return *std::max_element(load.begin(), load.end());
  };
  constexpr double share = double(tokens) * top_k / experts;
  CHECK(most_load(std::vector<float>(experts)) > 1.8 * share);
  CHECK(most_load(b.by(correct)) < 1.1 * share);
}

TEST_CASE("one token, or none, is not balanced", "[router]") {
  for (sy::sinkhorn_traits form : {correct, as_published}) {
    CHECK(balanced{.experts = 3, .logits = {1.0f, 5.0f, 2.0f}}.by(form) == std::vector<float>(3));
    CHECK(balanced{.experts = 3, .logits = {}}.by(form) == std::vector<float>(3));
    CHECK(balanced{.experts = 2, .logits = {1, 5, 2, 7}, .active = {0, 1}}.by(form) == std::vector<float>(2));
  }
}

TEST_CASE("where all logits are equal the first experts are chosen", "[router]") {
  for (int tokens : {2, 7, 300}) {
    for (sy::sinkhorn_traits form : {correct, as_published}) {
      balanced const b{.experts = 37, .logits = std::vector<float>(static_cast<std::size_t>(37 * tokens), 0.7f)};
      std::vector<float> const bias = b.by(form);
      CHECK(bias == std::vector<float>(37, bias[0]));
      sy::route<2> const r = choose<s_base<>, 2, 37>(b.logits.data(), bias.data());
      CHECK(r.expert[0] == 0);
      CHECK(r.expert[1] == 1);
    }
  }
}

TEST_CASE("what is added to all logits of a token changes no choice, nor what is added to all of an expert",
          "[router]") {
  constexpr int tokens = 50, experts = 7;
  balanced const b{.experts = experts, .logits = uneven_logits(tokens, experts, 1.0, 6)};
  std::vector<float> const bias = b.by({.iterations = 60});
  balanced moved = b;
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t e = 0; e < experts; ++e) {
      moved.logits[t * experts + e] += static_cast<float>(t) * 0.5f - static_cast<float>(e);
    }
  }
  std::vector<float> const other = moved.by({.iterations = 60});
  for (std::size_t e = 0; e < experts; ++e) {
    CHECK(other[e] - other[0] - static_cast<float>(e) == Catch::Approx(bias[e] - bias[0]).margin(1e-4));
  }
}

TEST_CASE("the balance has the same bits for any number of threads", "[router]") {
  balanced b{.experts = 33, .logits = uneven_logits(1000, 33, 2.0, 7)};
  std::vector<float> const alone = b.by(correct);
  for (int threads : {2, 3, 8}) {
    b.threads = threads;
    CHECK(b.by(correct) == alone);
  }
}

TEST_CASE("tokens that are padding or cannot be routed do not count in the balance", "[router]") {
  constexpr std::size_t experts = 5;
  balanced all{.experts = experts, .logits = uneven_logits(130, experts, 1.0, 8)};
  balanced marked = all;
  marked.active.assign(130, 1);
  balanced few{.experts = experts, .logits = {}};
  for (std::size_t t = 0; t < 130; ++t) {
    bool const lost = t % 7 == 3, padding = t % 5 == 1;
    if (lost) marked.logits[t * experts + t % experts] = t % 2 == 0 ? not_a_number : closed;
    if (padding) marked.active[t] = 0;
    if (lost || padding) continue;
    auto const row = all.logits.begin() + static_cast<std::ptrdiff_t>(t * experts);
    few.logits.insert(few.logits.end(), row, row + experts);
  }
  std::vector<float> const got = marked.by(correct), expected = few.by(correct);
  for (std::size_t e = 0; e < experts; ++e) CHECK(got[e] == Catch::Approx(expected[e]).margin(1e-6));
}

TEST_CASE("an expert that a bias closes is left out of the balance", "[router]") {
  std::vector<float> const open = uneven_logits(100, 3, 1.0, 9);
  balanced b{.experts = 4, .logits = {}, .router_bias = {0.0f, closed, 0.0f, 0.0f}};
  for (std::size_t t = 0; t < 100; ++t) {
    b.logits.insert(b.logits.end(), {open[3 * t], closed, open[3 * t + 1], open[3 * t + 2]});
  }
  std::vector<float> const got = b.by(correct), of_open = balanced{.experts = 3, .logits = open}.by(correct);
  CHECK(got[1] == 0.0f);
  for (std::size_t e : {1, 2}) {
    CHECK(got[e + 1] - got[0] == Catch::Approx(of_open[e] - of_open[0]).margin(1e-5));
  }
}

TEST_CASE("the names of S-BASE say how it balances", "[router]") {
  CHECK(s_base<>::name == "s_base<3>");
  CHECK(shared<s_base<as_published>>::name == "shared<s_base<3,as_published>>");
}
