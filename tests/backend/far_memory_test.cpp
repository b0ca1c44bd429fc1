#include <switchyard/switchyard.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "catch.hpp"
#include "support/compare.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sy = switchyard;

#if defined(__linux__)
namespace {

/// Memory of which pages exist once they are written.
class sparse_memory {
 public:
  explicit sparse_memory(std::size_t bytes)
      : bytes_(bytes),
        first_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {
    REQUIRE(first_ != MAP_FAILED);
  }
  sparse_memory(sparse_memory const&) = delete;
  ~sparse_memory() { munmap(first_, bytes_); }
  template <class T>
  T* as() const {
    return static_cast<T*>(first_);
  }

 private:
  std::size_t bytes_;
  void* first_;
};

constexpr std::int64_t beyond = (std::int64_t{1} << 31) + 77;  // elements

template <class Element>
using far_layer =
    sy::layer<sy::shape{.hidden = 24, .intermediate = 20, .experts = 2, .top_k = 2}, sy::router::softmax_top_k,
              sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>, sy::backend::cpu, Element>;

}  // namespace

TEMPLATE_TEST_CASE("what a call reads and writes may lie more than 2^31 elements apart", "[layer]", float,
                   sy::bfloat16) {
  using layer = far_layer<TestType>;
  constexpr int tokens = 3, hidden = 24, intermediate = 20, matrix = hidden * intermediate;
  std::uint32_t state = 1;
  auto const values = [&](std::size_t count) {
    std::vector<TestType> made(count);
    for (TestType& v : made) {
      state = state * 1664525u + 1013904223u;
      v = TestType(static_cast<float>(state >> 8) / 16777216.0f - 0.5f);
    }
    return made;
  };
  auto const x = values(tokens * hidden), gate = values(2 * matrix), up = values(2 * matrix), down = values(2 * matrix);
  std::vector<float> const router(2 * hidden, 0.1f);
  std::vector<std::byte> scratch(layer::workspace_bytes(tokens));
  std::vector<TestType> near(x.size()), far(x.size());
  layer::forward({.tokens = layer::rows(x.data(), tokens),
                  .weights = {.router = {.weight = router.data()},
                              .gate_proj = layer::in_proj(gate.data()),
                              .up_proj = layer::in_proj(up.data()),
                              .down_proj = layer::out_proj(down.data())},
                  .output = layer::rows(near.data(), tokens),
                  .workspace = scratch});

  // Rows of tokens and output, the experts' matrices, the rows of one and the columns of another.
  sparse_memory const memory(static_cast<std::size_t>(beyond) * sizeof(TestType) * 32);
  auto* const first = memory.as<TestType>();
  sy::view<TestType> const far_x{first, tokens, hidden, beyond}, far_y{first + 100, tokens, hidden, beyond};
  sy::weight_view<TestType> const far_gate{first + 1000, beyond, hidden, 1};
  sy::weight_view<TestType> const far_up{first + 3000, matrix, beyond, 1};
  sy::weight_view<TestType> const far_down{first + 5000, matrix, 1, beyond};
  for (int t = 0; t < tokens; ++t) {
    for (int h = 0; h < hidden; ++h) far_x.row(t)[h] = x[t * hidden + h];
  }
  auto const store = [&](sy::weight_view<TestType> const& to, std::vector<TestType> const& from, int rows,
                         int columns) {
    for (int e = 0; e < 2; ++e) {
      for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < columns; ++c) {
          const_cast<TestType*>(to.data)[e * to.expert_stride + r * to.row_stride + c * to.column_stride] =
              from[(e * rows + r) * columns + c];
        }
      }
    }
  };
  store(far_gate, gate, intermediate, hidden);
  store(far_up, up, intermediate, hidden);
  store(far_down, down, hidden, intermediate);
  layer::forward({.tokens = far_x,
                  .weights = {.router = {.weight = router.data()},
                              .gate_proj = far_gate,
                              .up_proj = far_up,
                              .down_proj = far_down},
                  .output = far_y,
                  .workspace = scratch});
  for (int t = 0; t < tokens; ++t) {
    for (int h = 0; h < hidden; ++h) far[t * hidden + h] = far_y.row(t)[h];
  }
  for (std::size_t i = 0; i < near.size(); ++i) {  // the columns that are far apart are added in other pieces
    CHECK(static_cast<float>(far[i]) ==
          Approx(static_cast<float>(near[i])).epsilon(sizeof(TestType) == 4 ? 1e-5 : 1e-2));
  }
}
#endif
