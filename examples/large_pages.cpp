// Weights on large pages. At few tokens a layer is as fast as its weights come from memory, and on 4 KiB pages the processor
// spends much of that time looking up addresses. An engine that owns its weights asks for 2 MiB pages; one that maps a file
// copies it into such memory once.
#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sy = switchyard;

using granite = sy::presets::granite_1b_a400m<sy::bfloat16>;

struct release {
  void operator()(void* memory) const { std::free(memory); }
};
using memory = std::unique_ptr<std::byte[], release>;

/// Memory for whole pages of 2 MiB; the system may still give smaller ones.
memory allocate(std::size_t bytes, bool large_pages) {
  constexpr std::size_t page = std::size_t{2} << 20;
  bytes = (bytes + page - 1) / page * page;
  memory result(static_cast<std::byte*>(std::aligned_alloc(page, bytes)));
#if defined(__linux__)
  // Before the memory is written for the first time.
  madvise(result.get(), bytes, large_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#else
  (void)large_pages;
#endif
  return result;
}

/// Milliseconds of one token through one layer after the other, each time other weights.
double milliseconds_of_a_token(bool large_pages) {
  constexpr int hidden = granite::dims.hidden, intermediate = granite::dims.intermediate;
  constexpr std::size_t experts = granite::dims.experts, matrix = experts * hidden * intermediate, layers = 4;
  memory const weights = allocate(layers * 3 * matrix * sizeof(sy::bfloat16), large_pages);
  auto* const values = reinterpret_cast<sy::bfloat16*>(weights.get());
  for (std::size_t i = 0; i < layers * 3 * matrix; ++i) values[i] = sy::bfloat16(static_cast<float>(i % 251) / 4096.0f);

  std::minstd_rand random(1);
  auto const any = [&] { return static_cast<float>(random()) / static_cast<float>(random.max()) - 0.5f; };
  std::vector<float> router(experts * hidden);
  for (float& value : router) value = any();
  std::vector<sy::bfloat16> x(hidden), y(hidden);
  std::vector<std::byte> scratch(granite::workspace_bytes(1));
  std::vector<double> times;
  for (int call = 0; call < 101; ++call) {
    for (sy::bfloat16& value : x) value = sy::bfloat16(any());
    sy::bfloat16 const* const layer = values + call % layers * 3 * matrix;
    auto const begin = std::chrono::steady_clock::now();
    granite::forward({.tokens = granite::rows(std::as_const(x).data(), 1),
                      .weights = {.router = {.weight = router.data()},
                                  .gate_proj = granite::in_proj(layer),
                                  .up_proj = granite::in_proj(layer + matrix),
                                  .down_proj = granite::out_proj(layer + 2 * matrix)},
                      .output = granite::rows(y.data(), 1),
                      .workspace = scratch});
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return 1e3 * times[times.size() / 2];
}

int main() {
  std::printf("%s on %s\n", sy::describe<granite>().c_str(), sy::describe(sy::cpu_context{}).c_str());
  double const small = milliseconds_of_a_token(false), large = milliseconds_of_a_token(true);
  std::printf("one token, weights on pages of 4 KiB: %.2f ms; of 2 MiB where the system has them: %.2f ms\n", small,
              large);
}
