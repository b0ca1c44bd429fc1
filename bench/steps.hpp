#pragma once

#include "ceilings.hpp"
#include "layers.hpp"
#include "memory.hpp"
#include "work.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

/// How a step of a layer becomes lines of the table.
namespace switchyard::bench {

/// What the command line decides, and the ceilings of this machine.
struct settings {
  int threads = 1;
  bool smoke = false;
  bool has_min_time = false;  ///< Google Benchmark's own option is set
  ceilings machine;

  std::vector<std::int64_t> tokens() const {
    return smoke ? std::vector<std::int64_t>{1, 64} : std::vector<std::int64_t>{1, 8, 64, 512, 2048};
  }
  double seconds() const { return smoke ? 0.005 : 0.25; }
};

inline settings& current_settings() {
  static settings the_settings;
  return the_settings;
}

inline constexpr std::int64_t mib = 1 << 20;

/// Bytes of one copy of a layer's weights.
template <class Layer>
std::int64_t weight_bytes() {
  return costs<Layer>(0).parameters * static_cast<std::int64_t>(sizeof(typename Layer::element));
}

/// Copies of the weights that calls take in turn: beyond any cache, and two where that is no more than 4 GiB.
template <class Layer>
std::int64_t weight_copies() {
  if (current_settings().smoke) return 1;
  std::int64_t const bytes = weight_bytes<Layer>();
  return std::max<std::int64_t>(2 * bytes <= 4096 * mib ? 2 : 1, 1024 * mib / bytes);
}

inline std::shared_ptr<void>& current_memory() {
  static std::shared_ptr<void> memory;
  return memory;
}

/// The memory of one layer: made when a line first asks for it, released when a line of another layer does.
template <class Layer>
layer_memory<Layer>& memory_of() {
  static std::weak_ptr<layer_memory<Layer>> mine;
  if (auto const present = mine.lock()) return *present;
  current_memory().reset();
  auto const fresh = std::make_shared<layer_memory<Layer>>(weight_copies<Layer>(), current_settings().threads);
  current_memory() = fresh;
  mine = fresh;
  return *fresh;
}

/// Registers one step of one layer for every number of tokens and every skew.
///
/// `run(memory)` makes one call; `least(data)` is its `work` for one token set.
template <class Layer, class Run, class Least>
void register_step(std::string const& step, Run run, Least least) {
  settings const& with = current_settings();
  for (std::int64_t const tokens : with.tokens()) {
    for (skew const spread : all_skews) {
      if (tokens == 1 && spread != skew::uniform) continue;  // one token has no skew
      if (with.smoke && spread == skew::zipf) continue;
      std::string const name =
          step + "/" + describe<Layer>() + "/tokens:" + std::to_string(tokens) + "/skew:" + name_of(spread);
      auto const body = [=](benchmark::State& state) {
        layer_memory<Layer>& memory = memory_of<Layer>();
        memory.prepare(tokens, spread);
        for (auto _ : state) run(memory);

        work mean;
        for (auto const& data : memory.data()) mean = mean + least(data);
        mean.flops /= static_cast<double>(memory.data().size());
        mean.bytes /= static_cast<double>(memory.data().size());
        ceilings const& most = current_settings().machine;
        double const floor = std::max(mean.flops / most.peak<typename Layer::element>(), mean.bytes / most.bytes);
        auto const rate = [](double each) {
          return benchmark::Counter(each, benchmark::Counter::kIsIterationInvariantRate);
        };
        state.counters["tokens/s"] = rate(static_cast<double>(tokens));
        state.counters["flop/s"] = rate(mean.flops);
        state.counters["bytes/s"] = rate(mean.bytes);
        state.counters["floor_share"] = rate(floor);
      };
      auto* const line = benchmark::RegisterBenchmark(name.c_str(), body);
      line->UseRealTime()->Unit(benchmark::kMillisecond);
      if (!with.has_min_time) line->MinTime(with.seconds());
    }
  }
}

/// Registers a step for the layer at an index of `measured_layers`: `add.template operator()<Layer>()`.
template <class Add, std::size_t... Index>
void at_layer(std::size_t index, Add const& add, std::index_sequence<Index...>) {
  auto const try_one = [&]<std::size_t I>() {
    using layer_type = std::tuple_element_t<I, measured_layers>;
    if (I == index) add.template operator()<layer_type>();
  };
  (try_one.template operator()<Index>(), ...);
}

inline constexpr std::size_t layer_count = std::tuple_size_v<measured_layers>;

template <class Add>
void at_layer(std::size_t index, Add const& add) {
  at_layer(index, add, std::make_index_sequence<layer_count>{});
}

// One function per file `<step>_bench.cpp`; `index` is the layer's place in `measured_layers`.
void register_route(std::size_t index);
void register_dispatch(std::size_t index);
void register_experts(std::size_t index);
void register_forward(std::size_t index);

/// What the experts do at least, shared ones included: products of the rows that were not dropped; weights of the
/// experts that were used; each token read and each row written once.
template <class Layer>
work experts_work(call_data<Layer> const& data) {
  using element = typename Layer::element;
  constexpr expert_traits traits = Layer::expert_traits;
  constexpr double hidden = Layer::dims.hidden;
  constexpr double expert = (traits.input_projections() + 1) * hidden * Layer::dims.intermediate;
  constexpr double shared = (traits.input_projections() + 1) * hidden * traits.shared_intermediate;
  double const rows = static_cast<double>(data.rows), tokens = static_cast<double>(data.tokens);
  return {2.0 * (rows * expert + tokens * shared),
          sizeof(element) * (data.experts_used * expert + shared + tokens * hidden) + sizeof(float) * rows * hidden};
}

}  // namespace switchyard::bench
