#include "../memory.hpp"
#include "../samples.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

// What a router method costs: layers that differ in the router alone, on the same tokens and weights, taking turns in one
// run. Times are those of whole layers, as a ratio to the layer with the base router.
namespace {

namespace sy = switchyard;
namespace bench = switchyard::bench;

template <class Router>
using olmoe = sy::layer<sy::shape{.hidden = 2048, .intermediate = 1024, .experts = 64, .top_k = 8}, Router,
                        sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>, sy::backend::cpu, sy::bfloat16>;
using base_router = sy::router::top_k_softmax;
using base = olmoe<base_router>;
using shared = olmoe<sy::router::shared<base_router>>;
using clustered = olmoe<sy::router::adaptive_clustering<base_router>>;
using stratified = olmoe<sy::router::stratified<base_router, 32, 32>>;
/// One call of a layer on the base layer's data.
template <class Layer>
void call(bench::call_memory<sy::bfloat16> const& memory, sy::cpu_context const& where) {
  Layer::forward(bench::args_of<Layer>(memory), where);
}

struct contender {
  char const* name;
  void (*call)(bench::call_memory<sy::bfloat16> const&, sy::cpu_context const&);
  bool weights_given;
};
constexpr contender contenders[] = {{"base", &call<base>, false},
                                    {"shared", &call<shared>, false},
                                    {"adaptive_clustering, computed weights", &call<clustered>, false},
                                    {"adaptive_clustering, given weights", &call<clustered>, true},
                                    {"stratified<32,32>", &call<stratified>, false}};
constexpr std::size_t count = std::size(contenders);

}  // namespace

int main(int argc, char** argv) {
  int const threads = argc > 1 ? std::atoi(argv[1]) : 2;
  if (threads < 1 || argc > 2) {
    std::fputs("usage: methods_bench [threads, default 2]\n", stderr);
    return 1;
  }
  std::printf(
      "%s, %d threads; ms of a call, and x base: medians, least and most of the rounds\n%6s  %-40s %10s %19s %8s "
      "%17s\n",
      sy::describe<base>().c_str(), threads, "tokens", "router", "ms", "", "x base", "");
  bench::layer_memory<sy::bfloat16> memory(bench::facts_of<base>(), 2, threads);
  std::vector<float> const ones(std::size_t{base::dims.experts} * base::dims.hidden, 1.0f);
  struct {
    std::int64_t tokens;
    int rounds;
  } const cases[] = {{1, 41}, {64, 21}, {512, 15}, {2048, 9}};
  for (auto const& [tokens, rounds] : cases) {
    memory.prepare(tokens, bench::skew::uniform);
    auto const workspace = bench::zero_pages<std::byte>(
        static_cast<std::int64_t>(std::max({base::workspace_bytes(tokens), shared::workspace_bytes(tokens),
                                            clustered::workspace_bytes(tokens), stratified::workspace_bytes(tokens)})));
    std::vector<std::uint8_t> passes(static_cast<std::size_t>(tokens));
    auto const run = [&](contender const& which) {
      auto&& [data, weights] = memory.next();
      bench::call_memory<sy::bfloat16> call = data.memory(weights);
      call.output = memory.output();
      call.workspace = {workspace.data(), static_cast<std::size_t>(workspace.size())};
      call.ones = ones.data();
      // As if the layer before had chosen alike.
      call.clusters = {data.experts.data(), base::dims.top_k, which.weights_given ? ones.data() : nullptr};
      if (which.call == &::call<stratified>) call.report.passes = passes.data();
      which.call(call, memory.where());
    };
    std::vector<double> seconds[count];
    for (int round = -1; round < rounds; ++round) {  // the first touches all memory and is not counted
      for (std::size_t turn = 0; turn < count; ++turn) {
        std::size_t const which = (turn + static_cast<std::size_t>(round + 1)) % count;
        run(contenders[which]);
        auto const begin = std::chrono::steady_clock::now();
        run(contenders[which]);
        double const passed = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        if (round >= 0) seconds[which].push_back(passed);
      }
    }
    for (std::size_t c = 0; c < count; ++c) {
      bench::samples_range const time = bench::range_of(seconds[c]), over = bench::ratios_of(seconds[c], seconds[0]);
      std::printf("%6lld  %-40s %10.2f %8.2f - %8.2f %8.3f %7.3f - %7.3f\n", static_cast<long long>(tokens),
                  contenders[c].name, time.median * 1e3, time.least * 1e3, time.most * 1e3, over.median, over.least,
                  over.most);
    }
    double made = 0.0;
    for (std::uint8_t p : passes) made += p;
    made /= static_cast<double>(tokens);
    std::printf("%6lld  %-40s %10.2f %19s %8.3f\n", static_cast<long long>(tokens),
                "  passes of a token, and x base for each", made, "",
                bench::ratios_of(seconds[count - 1], seconds[0]).median / made);
    std::fflush(stdout);
  }
  return 0;
}
