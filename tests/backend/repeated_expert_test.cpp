#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "backend/check.hpp"
#include "catch.hpp"
#include "support/any_layer.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/random_problem.hpp"

namespace sy = switchyard;
using namespace support;

TEST_CASE("a caller may name an expert twice: it then has two rows of the token", "[forward]") {
  for_each_layer([](any_layer const& layer) {
    if (!layer.router.precomputed) return;
    problem p = random_problem(layer, 60, routing::free, 3);
    int const top_k = p.config.top_k;
    for (std::size_t token = 0; token < 60; token += 2) p.inputs.ids[token * top_k + 1] = p.inputs.ids[token * top_k];
    outcome const got = run(p);
    check_against_reference(p, got);
    std::int64_t pairs = 0;
    for (std::int64_t load : got.load) pairs += load;
    CHECK(pairs == 60 * top_k);
  });
}

namespace {

/// A router of somebody else's, whose second choice is its first one again.
struct twice : sy::router::by_logits {
  static constexpr std::string_view name = "twice";

  template <int TopK, int Experts, class Lanes>
  static sy::route<TopK> select(Lanes lanes, sy::per_expert<Experts, Lanes> const& logits,
                                sy::router_weights const& weights) {
    auto result = sy::router::softmax_top_k::select<TopK>(lanes, logits, weights);
    result.expert[1] = result.expert[0];
    return result;
  }
};

template <class Router>
using small = sy::layer<sy::shape{.hidden = 20, .intermediate = 12, .experts = 4, .top_k = 2}, Router,
                        sy::capacity::fixed<5>, sy::expert::mlp<sy::relu>>;

}  // namespace

TEST_CASE("a router may name an expert twice: the layer gives the bits of the same routes made by the caller",
          "[forward]") {
  constexpr int tokens = 30;
  std::vector<float> x(tokens * 20), router(4 * 20), up(4 * 12 * 20), down(4 * 20 * 12);
  std::uint32_t state = 1;
  for (std::vector<float>* values : {&x, &router, &up, &down}) {
    for (float& v : *values) {
      state = state * 1664525u + 1013904223u;
      v = static_cast<float>(state >> 8) / 16777216.0f - 0.5f;
    }
  }
  using own = small<twice>;
  using callers = small<sy::router::precomputed>;
  std::vector<float> y(x.size()), again(x.size()), weights(tokens * 2);
  std::vector<std::int32_t> ids(tokens * 2);
  std::vector<std::uint8_t> dropped(tokens * 2), dropped_again(tokens * 2);
  std::vector<std::int64_t> counts(4), load(4);
  std::vector<std::byte> scratch(own::workspace_bytes(tokens) + 4096);  // the others need about as much
  own::forward(
      {.tokens = own::rows(x.data(), tokens),
       .weights = {.router = {.weight = router.data()},
                   .up_proj = own::in_proj(up.data()),
                   .down_proj = own::out_proj(down.data())},
       .output = own::rows(y.data(), tokens),
       .workspace = scratch,
       .decisions = {.experts = ids.data(), .dropped = dropped.data(), .counts = counts.data(), .load = load.data()}});
  for (int token = 0; token < tokens; ++token) CHECK(ids[2 * token] == ids[2 * token + 1]);
  std::int64_t rows = 0;
  for (int e = 0; e < 4; ++e) {
    CHECK(load[e] % 2 == 0);
    CHECK(counts[e] == std::min<std::int64_t>(load[e], 5));
    rows += counts[e];
  }
  CHECK(rows > 0);

  // The same weights from a layer that drops nothing.
  using plain = sy::layer<own::dims, sy::router::softmax_top_k, sy::capacity::dropless, own::expert>;
  plain::forward({.tokens = plain::rows(x.data(), tokens),
                  .weights = {.router = {.weight = router.data()},
                              .up_proj = plain::in_proj(up.data()),
                              .down_proj = plain::out_proj(down.data())},
                  .output = plain::rows(again.data(), tokens),
                  .workspace = scratch,
                  .decisions = {.weights = weights.data()}});
  callers::forward({.tokens = callers::rows(x.data(), tokens),
                    .weights = {.up_proj = callers::in_proj(up.data()), .down_proj = callers::out_proj(down.data())},
                    .output = callers::rows(again.data(), tokens),
                    .workspace = scratch,
                    .inputs = {.experts = ids.data(), .weights = weights.data()},
                    .decisions = {.dropped = dropped_again.data()}});
  CHECK(dropped == dropped_again);
  CHECK(same_bits(y, again));
}
