#include "support/workspaces.hpp"

#include <cstddef>
#include <cstdint>

#include "catch.hpp"
#include "support/any_layer.hpp"

namespace support {

void check_workspaces() {
  for (any_layer const& layer : compiled_layers()) {
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

}  // namespace support
