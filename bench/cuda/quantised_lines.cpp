#include "memory.hpp"
#include "setup.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

// What quantised experts cost, and offloaded ones: layers that differ in how, and where, their matrices are stored alone, on the same tokens, taking turns with the one
// whose matrices are bfloat16. Codes are noise: the formats are checked elsewhere.
namespace switchyard::bench {

namespace {

struct quantised_times {
  double weights = 0.0;      ///< of the experts that are used
  std::vector<timing> time;  ///< bfloat16, then the formats
};

quantised_times measure(gpu_quantised const& of, std::int64_t tokens) {
  gpu_setup const& gpu = current_gpu();
  shape const& dims = of.base.dims;
  device_weights const weights(of.base, 0);
  std::int64_t const each = std::int64_t{3} * dims.hidden * dims.intermediate, count = dims.experts * each;
  // Bytes of bfloat16 noise: as codes of any kind, and as the halves inside of blocks, they are finite.
  auto const codes = device_noise<bfloat16>(count / 2 + 1, 1, 1.0f);
  device_memory<float> const floats(std::vector<float>(static_cast<std::size_t>(count / 1024 + 1), 0.01f));
  device_memory<half> const halves(std::vector<half>(static_cast<std::size_t>(count / 128 + 1), half(0.01f)));
  device_memory<std::uint8_t> const exponents(
      std::vector<std::uint8_t>(static_cast<std::size_t>(count / 32 + 1), std::uint8_t{120}));
  quantised_bytes const bytes{reinterpret_cast<std::uint8_t const*>(codes.data()), floats.data(), halves.data(),
                              exponents.data()};
  device_memory<bfloat16> const output(tokens * dims.hidden);
  std::size_t workspace = of.base.workspace_bytes(tokens);
  for (gpu_format const& format : of.formats) workspace = std::max(workspace, format.workspace_bytes(tokens));
  std::vector<device_call> calls;
  for (int turn = 0; turn < 2; ++turn) {
    calls.emplace_back(of.base, tokens, skew::uniform, static_cast<std::uint32_t>(turn), weights, workspace);
    calls.back().plan(output.data(), gpu.stream);
  }
  bool const few = tokens <= 64;
  std::vector<contender> contenders{{"bfloat16",
                                     [&](int turn) {
                                       of.base.enqueue[whole_step](
                                           calls[static_cast<std::size_t>(turn)].memory(output.data()), gpu.stream);
                                     },
                                     few}};
  for (gpu_format const& format : of.formats) {
    contenders.push_back({format.name,
                          [&, enqueue = format.enqueue](int turn) {
                            enqueue(calls[static_cast<std::size_t>(turn)].memory(output.data()), bytes, gpu.stream);
                          },
                          few});
  }
  return {static_cast<double>(calls[0].experts_used) * static_cast<double>(each),
          take_turns(contenders, gpu.smoke ? once(2) : schedule{.turns = 2}, gpu.stream)};
}

/// Measured when the first line of a case asks.
quantised_times const& times_of(gpu_quantised const& of, std::int64_t tokens) {
  static gpu_quantised const* measured_layer = nullptr;
  static std::int64_t measured_tokens = 0;
  static quantised_times result;
  if (measured_layer != &of || measured_tokens != tokens) {
    begin_case();
    measured_layer = &of;
    measured_tokens = tokens;
    result = {};
    result = measure(of, tokens);
  }
  if (result.time.empty()) throw std::runtime_error("the case failed before");
  return result;
}

}  // namespace

void add_quantised_lines() {
  bool const smoke = current_gpu().smoke;
  for (gpu_quantised const& of : compiled_quantised()) {
    if (of.small != smoke) continue;
    for (std::int64_t tokens :
         smoke ? std::vector<std::int64_t>{1, 70} : std::vector<std::int64_t>{1, 8, 64, 512, 8192}) {
      for (std::size_t which = 0; which <= of.formats.size(); ++which) {
        double const bits = which == 0 ? 16.0 : of.formats[which - 1].bits;
        add_line((which == 0 ? std::string("bfloat16") : of.formats[which - 1].name) + "/quantised " + of.base.name +
                     "/tokens:" + std::to_string(tokens) + "/skew:uniform",
                 [&of, tokens, which, bits](benchmark::State& state) {
                   quantised_times const& all = times_of(of, tokens);
                   report_time(state, all.time[which]);
                   state.counters["bits"] = bits;
                   state.counters["bytes/s"] = rate_of(all.weights * bits / 8.0);
                   state.counters["x_bfloat16"] = ratios_of(all.time[which].rounds, all.time[0].rounds).median;
                 });
      }
    }
  }
}

}  // namespace switchyard::bench
