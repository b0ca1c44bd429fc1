#include <cstddef>
#include <cstdint>

#include "catch.hpp"
#include "support/any_layer.hpp"

TEST_CASE("a workspace for more tokens is never smaller, so that it serves fewer", "[layer]") {
  for (support::any_layer const& layer : support::compiled_layers()) {
    INFO(layer.name);
    std::size_t before = 0;
    std::int64_t wrong = -1;
    for (std::int64_t tokens = 0; tokens <= 9000; ++tokens) {
      std::size_t const bytes = layer.workspace_bytes(tokens);
      if (bytes < before && wrong < 0) wrong = tokens;
      before = bytes;
    }
    CHECK(wrong == -1);
  }
}
