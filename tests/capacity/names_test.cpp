#include <switchyard/capacity/dropless.hpp>
#include <switchyard/capacity/factor.hpp>
#include <switchyard/capacity/fixed.hpp>
#include <switchyard/capacity/wrappers.hpp>

#include "catch.hpp"

namespace sy = switchyard;
using namespace switchyard::capacity;

TEST_CASE("names of capacities tell what is not by default", "[capacity]") {
  CHECK(dropless::name == "dropless");
  CHECK(fixed<0>::name == "fixed<0>");
  CHECK(share_of_tokens<1, 4>::name == "share_of_tokens<1:4>");
  CHECK(factor<5, 4>::name == "factor<5:4>");
  CHECK(factor<1, 1, rounding::fairseq>::name == "factor<1,fairseq>");
  CHECK(factor<2, 1, rounding::mesh, 4>::name == "factor<2,mesh,4>");
  CHECK(factor<1, 1, rounding::tutel, 0, 8>::name == "factor<1,tutel,0,8>");
  CHECK(factor<1, 1, rounding::ceil, 2>::name == "factor<1,ceil,2>");
}

TEST_CASE("names of wrapped capacities tell what is wrapped", "[capacity]") {
  CHECK(queued<fixed<3>, sy::queue::token_order>::name == "queued<fixed<3>,token_order>");
  CHECK(queued<fixed<3>, sy::queue::choice_order>::name == "queued<fixed<3>,choice_order>");
  CHECK(renormalised<queued<factor<5, 4>, sy::queue::priority>>::name == "renormalised<queued<factor<5:4>,priority>>");
  CHECK(on_drop<fixed<3>, sy::dropped::zero>::name == "on_drop<fixed<3>,zero>");
  CHECK(on_drop<fixed<3>, sy::dropped::input>::name == "on_drop<fixed<3>,input>");
  CHECK(on_drop<fixed<3>, sy::dropped::weighted_input>::name == "on_drop<fixed<3>,weighted_input>");
}
