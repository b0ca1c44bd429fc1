#include <switchyard/capacity/dropless.hpp>
#include <switchyard/capacity/factor.hpp>
#include <switchyard/capacity/fixed.hpp>
#include <switchyard/capacity/wrappers.hpp>

#include "catch.hpp"
#include "reference.hpp"

namespace sy = switchyard;
using sy::capacity::factor;
using sy::capacity::rounding;

namespace {

constexpr sy::shape experts(int count, int top_k = 1) {
  return {.hidden = 1, .intermediate = 1, .experts = count, .top_k = top_k};
}

/// Calls `check(tokens, experts, top_k)` for sizes around every rounding step.
template <class Check>
void for_many_sizes(Check check) {
  for (std::int64_t tokens = 0; tokens <= 70; ++tokens)
    for (int count : {1, 2, 3, 4, 7, 8, 64})
      for (int top_k : {1, 2}) check(tokens, count, top_k);
  for (std::int64_t tokens : {1023, 1024, 1025, 1 << 20}) check(tokens, 128, 1);
}

}  // namespace

TEST_CASE("Mesh rounding cuts off and has a floor of four slots", "[capacity]") {
  using train = factor<5, 4, rounding::mesh, 4>;
  using evaluation = factor<2, 1, rounding::mesh, 4>;
  CHECK(train::slots_per_expert(experts(16), 1024) == 80);
  CHECK(factor<5, 4, rounding::mesh>::slots_per_expert(experts(4), 10) == 3);
  CHECK(train::slots_per_expert(experts(4), 10) == 4);
  CHECK(evaluation::slots_per_expert(experts(4), 10) == 5);
  CHECK(factor<5, 4, rounding::mesh>::slots_per_expert(experts(512), 1024) == 2);
  CHECK(train::slots_per_expert(experts(512), 1024) == 4);
}

TEST_CASE("Mesh rounding gives no more slots than tokens, but the minimum may", "[capacity]") {
  CHECK(factor<8, 1, rounding::mesh>::slots_per_expert(experts(2), 10) == 10);
  CHECK(factor<5, 4, rounding::mesh, 4>::slots_per_expert(experts(2), 3) == 4);
}

TEST_CASE("fairseq and Tutel round the even share up before the factor", "[capacity]") {
  CHECK(factor<1, 1, rounding::fairseq>::slots_per_expert(experts(4), 10) == 3);
  CHECK(factor<1, 1, rounding::tutel>::slots_per_expert(experts(4), 10) == 3);
  CHECK(factor<2, 1, rounding::fairseq>::slots_per_expert(experts(8, 2), 85) == 22);
  CHECK(factor<1, 1, rounding::tutel>::slots_per_expert(experts(4, 2), 10) == 6);
  CHECK(factor<1, 1, rounding::tutel, 0, 4>::slots_per_expert(experts(4), 10) == 4);
}

TEST_CASE("the roundings are those of the reference", "[capacity]") {
  for_many_sizes([](std::int64_t tokens, int count, int top_k) {
    CAPTURE(tokens, count, top_k);
    sy::shape const dims = experts(count, top_k);
    CHECK(factor<5, 4>::slots_per_expert(dims, tokens) == reference::slots_ceil(tokens, count, top_k, 5, 4));
    CHECK(factor<5, 4, rounding::mesh, 4>::slots_per_expert(dims, tokens) ==
          reference::slots_mesh(tokens, count, 5, 4, 4));
    CHECK(factor<5, 4, rounding::fairseq>::slots_per_expert(dims, tokens) ==
          reference::slots_fairseq(tokens, count, 5, 4));
    CHECK(factor<5, 4, rounding::tutel, 0, 8>::slots_per_expert(dims, tokens) ==
          reference::slots_tutel(tokens, count, top_k, 5, 4, 8));
    CHECK(sy::capacity::share_of_tokens<1, 4>::slots_per_expert(dims, tokens) == reference::slots_share(tokens, 1, 4));
  });
}

TEST_CASE("a share of the tokens does not depend on the number of experts", "[capacity]") {
  using quarter = sy::capacity::share_of_tokens<1, 4>;
  CHECK(quarter::slots_per_expert(experts(4), 10) == 3);
  CHECK(quarter::slots_per_expert(experts(64), 10) == 3);
  CHECK(quarter::slots_per_expert(experts(4), 0) == 0);
}

TEST_CASE("a fixed capacity does not depend on the tokens, and zero slots are allowed", "[capacity]") {
  CHECK(sy::capacity::fixed<7>::slots_per_expert(experts(4), 1000) == 7);
  CHECK(sy::capacity::fixed<0>::slots_per_expert(experts(4), 1000) == 0);
}

TEST_CASE("dropless has room for every token", "[capacity]") {
  CHECK_FALSE(sy::capacity::dropless::traits.drops);
  for (std::int64_t tokens : {0, 1, 133})
    CHECK(sy::capacity::dropless::slots_per_expert(experts(4, 2), tokens) >= tokens);
}

TEST_CASE("wrappers change one trait and leave the slots", "[capacity]") {
  using base = sy::capacity::fixed<3>;
  using wrapped = sy::capacity::renormalised<sy::capacity::queued<base, sy::queue::priority>>;
  CHECK(base::traits.order == sy::queue::choice_order);
  CHECK(wrapped::traits.order == sy::queue::priority);
  CHECK(wrapped::traits.renormalises);
  CHECK(wrapped::traits.on_drop == sy::dropped::zero);
  CHECK(sy::capacity::on_drop<base, sy::dropped::input>::traits.on_drop == sy::dropped::input);
  CHECK(wrapped::slots_per_expert(experts(4), 9) == 3);
}
