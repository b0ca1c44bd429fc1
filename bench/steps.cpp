#include "steps.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>

namespace switchyard::bench {

namespace {

/// Copies of the weights that calls take in turn: beyond any cache, and two where that is no more than 4 GiB.
std::int64_t weight_copies(std::int64_t bytes) {
  if (current_settings().smoke) return 1;
  return std::max<std::int64_t>(2 * bytes <= 4096 * mib ? 2 : 1, 1024 * mib / bytes);
}

/// The memory of one layer: made when a line first asks for it, released when a line of another layer does.
template <class Element>
layer_memory<Element>& memory_of(cpu_layer<Element> const& of) {
  static std::shared_ptr<void> current;
  static void const* owner = nullptr;
  if (owner != &of) {
    current.reset();
    current =
        std::make_shared<layer_memory<Element>>(of.facts, weight_copies(weight_bytes(of)), current_settings().threads);
    owner = &of;
  }
  return *static_cast<layer_memory<Element>*>(current.get());
}

template <class Element>
void run_line(benchmark::State& state, cpu_layer<Element> const& of, int step, std::int64_t tokens, skew spread) {
  layer_memory<Element>& memory = memory_of(of);
  memory.prepare(tokens, spread);
  auto* const run = of.run[step];
  for (auto _ : state) {
    run(memory);
    benchmark::ClobberMemory();
  }

  work mean;
  for (auto const& data : memory.data()) mean = mean + of.least[step](data);
  mean.flops /= static_cast<double>(memory.data().size());
  mean.bytes /= static_cast<double>(memory.data().size());
  ceilings const& most = current_settings().machine;
  double const floor = std::max(mean.flops / most.peak<Element>(), mean.bytes / most.bytes);
  auto const rate = [](double each) { return benchmark::Counter(each, benchmark::Counter::kIsIterationInvariantRate); };
  state.counters["tokens/s"] = rate(static_cast<double>(tokens));
  state.counters["flop/s"] = rate(mean.flops);
  state.counters["bytes/s"] = rate(mean.bytes);
  state.counters["floor_share"] = rate(floor);
}

}  // namespace

template <class Element>
void add_lines(cpu_layer<Element> const& of) {
  settings const& with = current_settings();
  for (int step = 0; step < all_steps; ++step) {
    if (of.run[step] == nullptr) continue;
    for (std::int64_t const tokens : with.tokens()) {
      for (skew const spread : all_skews) {
        if (tokens == 1 && spread != skew::uniform) continue;  // one token has no skew
        if (with.smoke && spread == skew::zipf) continue;
        std::string const name = std::string(step_names[step]) + "/" + of.name + "/tokens:" + std::to_string(tokens) +
                                 "/skew:" + name_of(spread);
        auto* const line = benchmark::RegisterBenchmark(
            name.c_str(),
            [&of, step, tokens, spread](benchmark::State& state) { run_line(state, of, step, tokens, spread); });
        line->UseRealTime()->Unit(benchmark::kMillisecond);
        if (!with.has_min_time) line->MinTime(with.seconds());
        if (!with.has_repetitions) line->Repetitions(with.repetitions());
      }
    }
  }
}
template void add_lines(cpu_layer<float> const&);
template void add_lines(cpu_layer<bfloat16> const&);

}  // namespace switchyard::bench
