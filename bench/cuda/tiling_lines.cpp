#include "memory.hpp"
#include "setup.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

// The products of Hopper with other tiles than the default ones; all of a layer's take turns.
namespace switchyard::bench {

namespace {

struct tiling_times {
  double in_flops = 0.0, out_flops = 0.0;
  std::vector<timing> time;
};

tiling_times measure(gpu_tilings const& of, std::int64_t tokens) {
  gpu_setup const& gpu = current_gpu();
  device_weights const weights(of.layer, 0);
  device_memory<bfloat16> const output(tokens * of.layer.dims.hidden);
  std::vector<device_call> calls;
  for (int turn = 0; turn < 2; ++turn) {
    calls.emplace_back(of.layer, tokens, skew::uniform, static_cast<std::uint32_t>(turn), weights);
    calls.back().plan(output.data(), gpu.stream);
    of.layer.enqueue[whole_step](calls.back().memory(output.data()), gpu.stream);  // what the second product reads
  }
  double const product = 2.0 * static_cast<double>(calls[0].rows) * of.layer.dims.hidden * of.layer.dims.intermediate;
  tiling_times result{product * of.layer.expert.input_projections(), product, {}};
  std::vector<contender> contenders;
  for (gpu_tiling const& p : of.products) {
    contenders.push_back({p.name,
                          [&calls, &output, &gpu, step = p.enqueue](int turn) {
                            step(calls[static_cast<std::size_t>(turn)].memory(output.data()), gpu.stream);
                          },
                          false});
  }
  result.time = take_turns(contenders, gpu.smoke ? once(2) : schedule{.turns = 2}, gpu.stream);
  return result;
}

/// Measured when the first line of a layer asks.
tiling_times const& times_of(gpu_tilings const& of, std::int64_t tokens) {
  static gpu_tilings const* measured = nullptr;
  static tiling_times result;
  if (measured != &of) {
    begin_case();
    measured = &of;
    result = {};
    result = measure(of, tokens);
  }
  if (result.time.empty()) throw std::runtime_error("the case failed before");
  return result;
}

}  // namespace

void add_tiling_lines() {
  bool const smoke = current_gpu().smoke;
  std::int64_t const tokens = smoke ? 150 : 8192;
  for (gpu_tilings const& of : compiled_tilings()) {
    if (of.small != smoke) continue;
    for (std::size_t number = 0; number < of.products.size(); ++number) {
      add_line(of.products[number].name + "/tilings of " + of.layer.name + "/tokens:" + std::to_string(tokens) +
                   "/skew:uniform",
               [&of, tokens, number](benchmark::State& state) {
                 tiling_times const& all = times_of(of, tokens);
                 report_time(state, all.time[number]);
                 bool const in = of.products[number].in;
                 state.counters["flop/s"] = rate_of(in ? all.in_flops : all.out_flops);
                 // Over the fastest of the same product, by rounds.
                 std::size_t best = number;
                 for (std::size_t i = 0; i < of.products.size(); ++i) {
                   if (of.products[i].in == in && all.time[i].median() < all.time[best].median()) best = i;
                 }
                 state.counters["x_best"] = ratios_of(all.time[number].rounds, all.time[best].rounds).median;
               });
    }
  }
}

}  // namespace switchyard::bench
