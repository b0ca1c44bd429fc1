#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "catch.hpp"
#include "support/any_layer.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/random_problem.hpp"
#include "support/unroutable.hpp"

using namespace support;

TEST_CASE("a token that cannot be routed gives NaN where that is asked for, and the others get what they got",
          "[forward]") {
  for (any_layer const& layer : compiled_layers()) {
    INFO(layer.name);
    check_unroutable_token(layer);
  }
}

TEST_CASE("a token that cannot be routed is an error by default, before anything is written", "[forward]") {
  for (any_layer const& layer : compiled_layers()) {
    INFO(layer.name);
    problem p = random_problem(layer, 40, routing::free, 7);
    make_unroutable(p, 33);
    CHECK_THROWS_AS(run(p), sy::error);
  }
}

TEST_CASE("a bias of minus infinity closes its expert in whole layers", "[forward]") {
  int checked = 0;
  for (any_layer const& layer : compiled_layers()) {
    INFO(layer.name);
    checked += check_closed_expert(layer) ? 1 : 0;
  }
  CHECK(checked >= 5);
}

TEST_CASE("a route of -1 takes no row and no slot, and adds nothing", "[forward]") {
  int checked = 0;
  for (any_layer const& layer : compiled_layers()) {
    INFO(layer.name);
    checked += check_routes_elsewhere(layer) ? 1 : 0;
  }
  CHECK(checked >= 3);
}
