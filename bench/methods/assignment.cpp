// How long a matching of hidden units takes: squared distances by a product, and the assignment.
//   assignment_bench [UNITS COLUMNS]...    (1024 1536 2048 2048)
#include <switchyard/compression/assignment.hpp>
#include <switchyard/compression/matrix_product.hpp>
#include <switchyard/compression/units.hpp>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <time.h>
#endif

namespace {

namespace sy = switchyard;
namespace comp = switchyard::compression;

/// Seconds that the thread has computed.
double processor_time() {
#if defined(__linux__)
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
#else
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
#endif
}

class numbers {
 public:
  explicit numbers(std::uint64_t seed) : state_(seed) {}
  float uniform() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(state_ >> 40) * 0x1p-24f - 0.5f;
  }

 private:
  std::uint64_t state_;
};

/// Units of two experts. `alike`: the second one's are the first one's in another order, and noise of their size; else they have nothing
/// to do with each other, which is the harder case.
void measure(int units, int columns, bool alike) {
  numbers random(static_cast<std::uint64_t>(units));
  comp::matrix x(units, columns), a(units, columns), costs(units, units);
  for (float& v : x.values()) v = random.uniform();
  for (int u = 0; u < units; ++u) {
    float const* const from = std::as_const(x).row((static_cast<std::int64_t>(u) * 7919 + 5) % units);
    for (int c = 0; c < columns; ++c) a.row(u)[c] = random.uniform() + (alike ? from[c] : 0.0f);
  }
  double const begin = processor_time();
  comp::squared_distances(x, a, costs, {.threads = 1});
  double const product = processor_time() - begin;
  std::vector<std::int32_t> permutation(static_cast<std::size_t>(units));
  comp::assign(costs, permutation);
  double const assignment = processor_time() - begin - product;
  double sum = 0.0;
  for (int u = 0; u < units; ++u) sum += std::as_const(costs).row(u)[permutation[static_cast<std::size_t>(u)]];
  double const flop = 2.0 * units * static_cast<double>(units) * columns;
  std::printf("%6d x %-6d %-10s product %8.2f s, %6.1f Gflop/s; assignment %8.2f s; mean distance %.4f\n", units,
              columns, alike ? "alike" : "unlike", product, flop / product * 1e-9, assignment, sum / units);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::pair<int, int>> sizes;
  for (int i = 1; i + 1 < argc; i += 2) sizes.emplace_back(std::atoi(argv[i]), std::atoi(argv[i + 1]));
  if (sizes.empty()) sizes = {{1024, 1536}, {2048, 2048}};
  try {
    std::printf("%s, processor time of one thread\n", sy::describe(sy::cpu_context{.threads = 1}).c_str());
    for (auto const& [units, columns] : sizes) {
      for (bool alike : {true, false}) measure(units, columns, alike);
    }
  } catch (std::exception const& wrong) {
    std::fprintf(stderr, "assignment_bench: %s\n", wrong.what());
    return 1;
  }
  return 0;
}
