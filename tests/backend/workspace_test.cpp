#include "support/workspaces.hpp"

#include "catch.hpp"

TEST_CASE("a workspace for more tokens is never smaller, so that it serves fewer", "[layer]") {
  support::check_workspaces();
}
