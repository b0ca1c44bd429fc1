#include "../memory.hpp"
#include "support/set_arguments.hpp"

#include <algorithm>
#include <chrono>
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
constexpr int strata = stratified::strata_or_one;

/// One call of a layer with the base layer's data.
template <class Layer>
void call(bench::call_data<base> const& data, bench::weight_copy<base> const& from, std::span<std::byte> workspace,
          sy::view<sy::bfloat16> output, float const* table, std::uint8_t* passes, sy::cpu_context const& where) {
  typename Layer::args args{};
  args.tokens = {data.input.data(), data.tokens, base::dims.hidden};
  args.weights.up_proj = from.weights().up_proj;
  args.weights.down_proj = from.weights().down_proj;
  support::optional_arguments<sy::bfloat16> optional{
      .residual = args.tokens,
      .router = {from.router()},
      .gate_proj = from.weights().gate_proj,
      .clusters = {data.experts.data(), base::dims.top_k, table}};  // as if the layer before had chosen alike
  if constexpr (Layer::router_traits.stratification.strata > 0) {
    for (int i = 0; i < strata; ++i) {  // a gate that has the base router's rows of its experts
      optional.router[i].weight = from.router().weight + Layer::router::first_expert(i) * Layer::dims.hidden;
      optional.norm[i] = {table, table};
    }
    args.decisions.passes = passes;
  }
  support::set_arguments(args, optional);
  args.output = output;
  args.workspace = workspace;
  Layer::forward(args, where);
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  int const threads = argc > 1 ? std::atoi(argv[1]) : 2;
  if (threads < 1 || argc > 2) {
    std::fputs("usage: methods_bench [threads, default 2]\n", stderr);
    return 1;
  }
  constexpr int contenders = 5;
  char const* const names[contenders] = {"base", "shared", "adaptive_clustering, computed weights",
                                         "adaptive_clustering, given weights", "stratified<32,32>"};
  std::printf("%s, %d threads\n%6s  %-40s %10s %8s\n", sy::describe<base>().c_str(), threads, "tokens", "router", "ms",
              "x base");
  bench::layer_memory<base> memory(2, threads);
  std::vector<float> const table(std::size_t{base::dims.experts} * base::dims.hidden, 1.0f);
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
    auto const run = [&](int contender) {
      auto&& [data, weights] = memory.next();
      std::span<std::byte> const scratch(workspace.data(), static_cast<std::size_t>(workspace.size()));
      float const* const ones = contender >= 3 ? table.data() : nullptr;
      auto* const forward = contender == 0   ? &call<base>
                            : contender == 1 ? &call<shared>
                            : contender < 4  ? &call<clustered>
                                             : &call<stratified>;
      forward(data, weights, scratch, memory.output(), ones, passes.data(), memory.where());
    };
    std::vector<double> seconds[contenders];
    for (int round = -1; round < rounds; ++round) {  // the first touches all memory and is not counted
      for (int turn = 0; turn < contenders; ++turn) {
        int const contender = (turn + round + 1) % contenders;
        run(contender);
        auto const begin = std::chrono::steady_clock::now();
        run(contender);
        double const passed = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        if (round >= 0) seconds[contender].push_back(passed);
      }
    }
    for (int c = 0; c < contenders; ++c) {
      std::printf("%6lld  %-40s %10.2f %8.3f\n", static_cast<long long>(tokens), names[c], median(seconds[c]) * 1e3,
                  median(seconds[c]) / median(seconds[0]));
    }
    double made = 0.0;
    for (std::uint8_t p : passes) made += p;
    made /= static_cast<double>(tokens);
    std::printf("%6lld  %-40s %10.2f %8.3f\n", static_cast<long long>(tokens),
                "  passes of a token, and x base for each", made,
                median(seconds[contenders - 1]) / median(seconds[0]) / made);
    std::fflush(stdout);
  }
  return 0;
}
