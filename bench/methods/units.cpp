#include "../memory.hpp"
#include "../samples.hpp"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

// What top-K activation saves: a layer of one expert that keeps some of its units, with the down projection feature by feature and unit by
// unit, where what is zero is skipped, beside the layer that keeps all. In turns; weights change between calls, so that they come from
// memory.
namespace {

namespace sy = switchyard;
namespace bench = switchyard::bench;

constexpr int hidden = 1024, intermediate = 4096;
using plain = sy::expert::mlp<sy::relu>;

template <class Element, class Expert>
using layer_of = sy::layer<sy::shape{hidden, intermediate, 1, 1}, sy::router::switch_top1, sy::capacity::dropless,
                           Expert, sy::backend::cpu, Element>;

template <class Element>
struct problem {
  static constexpr int copies = 6;
  static constexpr std::int64_t matrix = std::int64_t{hidden} * intermediate;
  bench::pages<Element> up = bench::noise_pages<Element>(copies * matrix, 1, 0.05f);
  bench::pages<Element> down = bench::noise_pages<Element>(copies * matrix, 2, 0.05f);
  std::vector<float> router = std::vector<float>(hidden, 0.0f);
  int copy = 0;

  /// One call; how many seconds it took.
  template <class Expert>
  double run(std::int64_t tokens, bool by_units, sy::cpu_context const& where) {
    using layer = layer_of<Element, Expert>;
    auto const x = bench::noise_pages<Element>(tokens * hidden, 3, 1.0f);
    auto const y = bench::zero_pages<Element>(tokens * hidden);
    auto const workspace = bench::zero_pages<std::byte>(static_cast<std::int64_t>(layer::workspace_bytes(tokens)));
    copy = (copy + 1) % copies;
    Element const* const down_of_copy = down.data() + copy * matrix;
    typename layer::args args;
    args.tokens = layer::rows(static_cast<Element const*>(x.data()), tokens);
    args.output = layer::rows(y.data(), tokens);
    args.workspace = {workspace.data(), static_cast<std::size_t>(workspace.size())};
    args.weights.router.weight = router.data();
    args.weights.up_proj = layer::in_proj(up.data() + copy * matrix);
    args.weights.down_proj = by_units ? sy::weight_view<Element>::transposed(down_of_copy, hidden, intermediate)
                                      : sy::weight_view<Element>::packed(down_of_copy, hidden, intermediate);
    auto const begin = std::chrono::steady_clock::now();
    layer::forward(args, where);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
};

template <class Element, int Kept>
void measure(problem<Element>& of, char const* element, sy::cpu_context const& where) {
  using keeps = sy::expert::top_k_units<plain, Kept>;
  for (std::int64_t tokens : {1, 8, 24, 64, 256}) {
    std::vector<double> seconds[3];
    for (int round = 0; round < (tokens < 64 ? 41 : 11); ++round) {
      seconds[0].push_back(of.template run<plain>(tokens, false, where));
      seconds[1].push_back(of.template run<keeps>(tokens, false, where));
      seconds[2].push_back(of.template run<keeps>(tokens, true, where));
    }
    double least[3];
    for (int i = 0; i < 3; ++i) least[i] = bench::range_of(seconds[i]).least;
    std::printf("%8s %5d %6lld %10.1f %10.1f %10.1f %10.2f %10.2f\n", element, Kept, static_cast<long long>(tokens),
                least[0] * 1e6, least[1] * 1e6, least[2] * 1e6, least[1] / least[2], least[0] / least[2]);
    std::fflush(stdout);
  }
}

template <class Element>
void measure_all(char const* element, sy::cpu_context const& where) {
  problem<Element> of;
  measure<Element, 64>(of, element, where);
  measure<Element, 256>(of, element, where);
  measure<Element, 512>(of, element, where);
}

}  // namespace

int main(int argc, char** argv) {
  int const threads = argc > 1 ? std::atoi(argv[1]) : 1;
  if (threads < 1 || argc > 2) {
    std::fputs("usage: units_bench [threads, default 1]\n", stderr);
    return 1;
  }
  sy::cpu_context const where = sy::cpu::resolved({.threads = threads});
  std::printf(
      "mlp<relu>, hidden %d, intermediate %d, one expert, %s; least us of the layer that keeps all units, keeps some, "
      "and skips the others\n%8s %5s %6s %10s %10s %10s %10s %10s\n",
      hidden, intermediate, sy::describe(where).c_str(), "element", "kept", "tokens", "all", "kept", "skipped",
      "kept/skip", "all/skip");
  measure_all<float>("float", where);
  measure_all<sy::bfloat16>("bfloat16", where);
  return 0;
}
