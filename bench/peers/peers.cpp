#include "../ceilings.hpp"
#include "../memory.hpp"
#include "openblas.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <thread>
#include <vector>

// Ours against a loop over experts of OpenBLAS: the same tokens, weights and routes, taking turns in one run.
namespace {

namespace sy = switchyard;
namespace bench = switchyard::bench;
namespace openblas = switchyard::bench::openblas;

using olmoe = sy::presets::olmoe_1b_7b<float>;
constexpr sy::shape dims = olmoe::dims;

constexpr int contenders = 3;
constexpr char const* names[contenders] = {"switchyard", "openblas, one expert per thread",
                                           "openblas, threads inside products"};

/// Medians over the rounds. Other work on the machine lengthens a call but not the time that it computes, which is
/// per thread and includes waiting for one another.
struct times {
  double wall = 0.0, cpu = 0.0;
};

struct result {
  times of[contenders];
  double flops = 0.0;  // of the experts' products
  double error = 0.0;  // the largest relative Frobenius distance of a peer's output from ours
};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

double distance(std::vector<float> const& a, std::vector<float> const& b) {
  double difference = 0.0, length = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    length += double{b[i]} * b[i];
  }
  return std::sqrt(difference / length);
}

double process_seconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

/// Every round each contender runs once, on the next token set and the next copy of the weights.
result compare(bench::layer_memory<olmoe>& memory, std::int64_t tokens, int rounds) {
  using clock = std::chrono::steady_clock;
  memory.prepare(tokens, bench::skew::uniform);
  result measured;
  measured.flops = 6.0 * dims.hidden * dims.intermediate * static_cast<double>(tokens * dims.top_k);
  openblas::problem p{.tokens = tokens,
                      .hidden = dims.hidden,
                      .intermediate = dims.intermediate,
                      .experts = dims.experts,
                      .top_k = dims.top_k};
  openblas::scratch scratch(p);
  std::vector<float> ours(tokens * dims.hidden), theirs(ours.size());
  std::vector<double> wall[contenders], cpu[contenders];

  auto const run = [&](int contender, bench::call_data<olmoe>& data, bench::weight_copy<olmoe> const& weights) {
    if (contender == 0) {
      olmoe::args args = data.args(weights);
      args.output = {ours.data(), tokens, dims.hidden};
      args.workspace = memory.workspace();
      olmoe::forward(args, memory.where());
      return;
    }
    p.input = data.input.data();
    p.gate_proj = weights.weights().gate_proj.data;
    p.up_proj = weights.weights().up_proj.data;
    p.down_proj = weights.weights().down_proj.data;
    p.routes = data.experts.data();
    p.weights = data.weight.data();
    p.output = theirs.data();
    openblas::forward(p, contender == 1 ? openblas::threading::one_expert_each : openblas::threading::inside_products,
                      memory.where().threads, scratch);
  };

  {  // once on the same data: compares outputs, touches all memory, starts all threads
    auto&& [data, weights] = memory.next();
    for (int c = 0; c < contenders; ++c) {
      run(c, data, weights);
      if (c > 0) measured.error = std::max(measured.error, distance(theirs, ours));
    }
  }
  for (int round = 0; round < rounds; ++round) {
    for (int turn = 0; turn < contenders; ++turn) {
      int const contender = (turn + round) % contenders;
      // Threads of the one before still spin for a while, waiting for more to do. Then, threads that wake up are
      // often put on one core together: untimed calls, until they have moved apart.
      std::this_thread::sleep_for(std::chrono::milliseconds(60));
      auto const warm = clock::now() + std::chrono::milliseconds(30);
      do {
        auto&& [data, weights] = memory.next();
        run(contender, data, weights);
      } while (clock::now() < warm);
      auto&& [data, weights] = memory.next();
      auto const begin = clock::now();
      double const cpu_begin = process_seconds();
      run(contender, data, weights);
      cpu[contender].push_back((process_seconds() - cpu_begin) / memory.where().threads);
      wall[contender].push_back(std::chrono::duration<double>(clock::now() - begin).count());
    }
  }
  for (int c = 0; c < contenders; ++c) measured.of[c] = {median(wall[c]), median(cpu[c])};
  return measured;
}

}  // namespace

int main(int argc, char** argv) {
  int const threads = argc > 1 ? std::atoi(argv[1]) : 2;
  std::int64_t const only = argc > 2 ? std::atoll(argv[2]) : 0;
  if (threads < 1 || only < 0 || argc > 3) {
    std::fputs("usage: peers_bench [threads, default 2] [tokens, default all cases]\n", stderr);
    return 1;
  }
  bench::ceilings const machine = bench::measure_ceilings(threads, 3.0);
  std::printf("%s\n%s\n%d threads; ceilings: %.0f GFLOP/s of float, %.1f GB/s read\n\n", sy::describe<olmoe>().c_str(),
              openblas::version(), threads, machine.flops / 1e9, machine.bytes / 1e9);
  std::printf("%6s  %-34s %10s %9s %11s %10s %11s %9s\n", "tokens", "", "ms", "GFLOP/s", "ours/peer", "cpu ms",
              "ours/peer", "error");

  bench::layer_memory<olmoe> memory(2, threads);
  bool agrees = true;
  struct {
    std::int64_t tokens;
    int rounds;
  } const cases[] = {{1, 41}, {8, 25}, {64, 15}, {512, 11}, {2048, 5}};
  for (auto const& [tokens, rounds] : cases) {
    if (only != 0 && tokens != only) continue;
    result const r = compare(memory, tokens, rounds);
    agrees = agrees && r.error < 1e-4;
    for (int c = 0; c < contenders; ++c) {
      times const t = r.of[c];
      std::printf("%6lld  %-34s %10.2f %9.1f", static_cast<long long>(tokens), names[c], t.wall * 1e3,
                  r.flops / t.wall / 1e9);
      if (c == 0) {
        std::printf(" %11s %10.2f", "", t.cpu * 1e3);
      } else {
        std::printf(" %10.2fx %10.2f %10.2fx %9.1e", t.wall / r.of[0].wall, t.cpu * 1e3, t.cpu / r.of[0].cpu, r.error);
      }
      std::printf("\n");
    }
    std::fflush(stdout);
  }
  std::printf(
      "\nMedians of calls in turn. cpu ms: what the process computed, per thread. ours/peer: our speed over the "
      "peer's,\n"
      "above 1 we are faster. We also route; the peers get the routes.\n");
  if (!agrees) std::printf("The outputs differ by more than 1e-4.\n");
  return agrees ? 0 : 1;
}
