#include "distance.hpp"
#include "memory.hpp"
#include "setup.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

// What a router method costs on the GPU: layers that differ in the router alone, on the same tokens and weights, taking
// turns in one run, as a ratio to the layer with the base router. `methods/methods.cpp` is the same for the CPU.
namespace switchyard::bench {

namespace {

enum method : std::size_t { base_router, shared_router, computed_weights, given_weights, two_strata };
constexpr std::array<char const*, 5> method_names{"base", "shared", "adaptive_clustering", "with given weights",
                                                  "stratified"};
constexpr int strata = 2;

gpu_layer const& layer_of(gpu_methods const& of, std::size_t which) {
  switch (which) {
    case base_router: return of.base;
    case shared_router: return of.shared;
    case two_strata: return of.stratified;
    default: return of.clustered;
  }
}

std::size_t workspace_bytes(gpu_methods const& of, std::int64_t tokens) {
  std::size_t result = 0;
  for (auto const* layer : {&of.base, &of.shared, &of.clustered, &of.stratified}) {
    result = std::max(result, layer->workspace_bytes(tokens));
  }
  return result;
}

/// Tokens and memory of one call on the GPU. All layers have the base layer's matrices.
class method_call {
 public:
  method_call(gpu_methods const& of, std::int64_t count, std::uint32_t set, device_weights const& weights)
      : of_(of),
        call_(of.base, count, skew::uniform, set, weights, workspace_bytes(of, count)),
        output(count * of.base.dims.hidden),
        ones(std::vector<float>(static_cast<std::size_t>(of.base.dims.experts) * of.base.dims.hidden, 1.0f)),
        labels(count * of.base.dims.top_k) {
    gpu_memory m = memory(base_router);
    m.decisions.experts = labels.data();  // as if the layer before had chosen so
    run(base_router, m);
    check_cuda(cudaStreamSynchronize(current_gpu().stream));
  }

  gpu_memory memory(std::size_t which) const {
    gpu_memory result = call_.memory(output.data());
    result.ones = ones.data();
    result.clusters = {labels.data(), of_.base.dims.top_k, which == given_weights ? ones.data() : nullptr};
    return result;
  }
  void run(std::size_t which, gpu_memory const& memory) const {
    layer_of(of_, which).enqueue[whole_step](memory, current_gpu().stream);
  }
  device_memory<bfloat16> const& input() const { return call_.input; }

 private:
  gpu_methods const& of_;
  device_call call_;

 public:
  device_memory<bfloat16> output;
  device_memory<float> ones;  // [experts, hidden]: a table of feature weights, weights and biases of norms
  device_memory<std::int32_t> labels;
};

struct method_times {
  std::array<timing, method_names.size()> time;
  double passes = 0.0;  ///< of a token in the stratified layer
};

method_times measure(gpu_methods const& of, std::int64_t tokens) {
  gpu_setup const& gpu = current_gpu();
  std::vector<device_weights> copies;
  for (std::uint32_t c = 0; c < 2; ++c) copies.emplace_back(of.base, c);
  int const turns = turns_for(of.base.costs(tokens, -1.0).bytes);
  std::vector<std::unique_ptr<method_call>> calls;
  for (int turn = 0; turn < turns; ++turn) {
    calls.push_back(std::make_unique<method_call>(of, tokens, static_cast<std::uint32_t>(turn),
                                                  copies[static_cast<std::size_t>(turn) % copies.size()]));
  }
  std::vector<contender> contenders;
  for (std::size_t which = 0; which < method_names.size(); ++which) {
    contenders.push_back({method_names[which],
                          [&calls, which](int turn) {
                            auto const& call = *calls[static_cast<std::size_t>(turn)];
                            call.run(which, call.memory(which));
                          },
                          tokens <= 64});
  }
  std::vector<timing> const times =
      take_turns(contenders, gpu.smoke ? once(turns) : schedule{.turns = turns}, gpu.stream);
  method_times result;
  std::copy(times.begin(), times.end(), result.time.begin());
  device_memory<std::uint8_t> const passes(tokens);
  gpu_memory memory = calls[0]->memory(two_strata);
  memory.report.passes = passes.data();
  calls[0]->run(two_strata, memory);
  check_cuda(cudaStreamSynchronize(gpu.stream));
  for (std::uint8_t made : copied(passes.data(), tokens)) result.passes += made;
  result.passes /= static_cast<double>(tokens);
  return result;
}

/// Measured when the first line of a case asks.
method_times const& times_of(gpu_methods const& of, std::int64_t tokens) {
  static gpu_methods const* measured_layers = nullptr;
  static std::int64_t measured_tokens = 0;
  static method_times result;
  if (measured_layers == &of && measured_tokens == tokens) return result;
  begin_case();
  result = measure(of, tokens);
  measured_layers = &of;
  measured_tokens = tokens;
  return result;
}

void report(benchmark::State& state, gpu_methods const& of, std::int64_t tokens, std::size_t which) {
  method_times const& all = times_of(of, tokens);
  report_time(state, all.time[which]);
  samples_range const over_base = ratios_of(all.time[which].rounds, all.time[base_router].rounds);
  state.counters["x_base"] = over_base.median;
  state.counters["x_base_least"] = over_base.least;
  state.counters["x_base_most"] = over_base.most;
  if (which == two_strata) state.counters["passes"] = all.passes;
  state.counters["tokens/s"] = rate_of(static_cast<double>(tokens));
}

}  // namespace

/// Every method against the CPU's layer, which the tests compare with float64; prints a line for each. A token whose
/// choice hangs on rounding, for a pass sees what the last one rounded, is left out and counted.
bool methods_agree(gpu_methods const& of) {
  constexpr std::int64_t tokens = 40;
  shape const dims = of.base.dims;
  cudaStream_t const stream = current_gpu().stream;
  device_weights const weights(of.base, 0);
  method_call const on_gpu(of, tokens, 200, weights);
  auto const input = copied(on_gpu.input().data(), on_gpu.input().size());
  auto const in = copied(weights.in.data(), weights.in.size()), out = copied(weights.out.data(), weights.out.size());
  auto const router = copied(weights.router.data(), weights.router.size());
  std::vector<float> const ones(static_cast<std::size_t>(dims.experts) * dims.hidden, 1.0f);
  auto const labels = copied(on_gpu.labels.data(), on_gpu.labels.size());
  std::vector<std::byte> workspace(of.cpu_workspace_bytes(tokens));
  std::vector<bfloat16> output(input.size());
  device_memory<std::int32_t> const got_experts(strata * tokens * dims.top_k);
  std::printf("Methods around %s, against the CPU\n", of.base.name.c_str());
  bool all = true;
  for (std::size_t which = 0; which < method_names.size(); ++which) {
    std::int64_t const ids = (which == two_strata ? strata : 1) * tokens * dims.top_k;
    std::vector<std::int32_t> experts(static_cast<std::size_t>(ids));
    gpu_memory on_cpu;
    on_cpu.tokens = tokens;
    on_cpu.input = input.data();
    on_cpu.output = output.data();
    on_cpu.workspace = workspace;
    set_weights(on_cpu, of.base, in.data(), out.data(), nullptr, nullptr, router.data(), nullptr);
    on_cpu.ones = ones.data();
    on_cpu.clusters = {labels.data(), dims.top_k, which == given_weights ? ones.data() : nullptr};
    on_cpu.decisions.experts = experts.data();
    of.on_cpu[which < given_weights ? which : which - 1](on_cpu);

    gpu_memory memory = on_gpu.memory(which);
    memory.decisions.experts = got_experts.data();
    on_gpu.run(which, memory);
    check_cuda(cudaStreamSynchronize(stream));
    auto const got = copied(got_experts.data(), ids);
    std::vector<bool> same(tokens, true);
    for (std::int64_t pair = 0; pair < ids; ++pair) {
      if (got[pair] != experts[pair]) same[pair / dims.top_k % tokens] = false;
    }
    auto const others = std::count(same.begin(), same.end(), false);
    device_memory<bfloat16> const right(output);
    double const error = distance(on_gpu.output.data(), right.data(), tokens, dims.hidden, stream,
                                  [&](std::int64_t token) { return same[token]; });
    bool const agrees = error < bfloat16_tolerance && others <= (which == two_strata ? tokens / 8 : 1);
    std::printf("  %-20s error %.1e, %d tokens with other experts  %s\n", method_names[which], error,
                static_cast<int>(others), agrees ? "ok" : "FAILED");
    all = all && agrees;
  }
  std::fflush(stdout);
  return all;
}

void add_method_lines() {
  bool const smoke = current_gpu().smoke;
  for (gpu_methods const& of : compiled_methods()) {
    if (of.small != smoke) continue;
    for (std::int64_t tokens :
         smoke ? std::vector<std::int64_t>{1, 70} : std::vector<std::int64_t>{2048, 64, 512, 8192, 1}) {
      for (std::size_t which = 0; which < method_names.size(); ++which) {
        add_line(std::string(method_names[which]) + "/methods around " + of.base.name +
                     "/tokens:" + std::to_string(tokens) + "/skew:uniform",
                 [&of, tokens, which](benchmark::State& state) { report(state, of, tokens, which); });
      }
    }
  }
}

}  // namespace switchyard::bench
