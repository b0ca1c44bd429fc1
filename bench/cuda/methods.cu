#include "compare.cuh"
#include "gpu_backend.cuh"
#include "memory.cuh"
#include "setup.hpp"
#include "support/set_arguments.hpp"
#include "timing.hpp"

#include <switchyard/switchyard.cuh>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

// What a router method costs on the GPU: layers that differ in the router alone, on the same tokens and weights, taking
// turns in one run, as a ratio to the layer with the base router. `methods/methods.cpp` is the same for the CPU.
namespace switchyard::bench {

namespace {

/// The layers that are compared, on one backend.
template <shape Dims, class Backend>
struct methods {
  template <class Router>
  using with =
      layer<Dims, Router, capacity::dropless, switchyard::expert::gated_mlp<silu>, Backend, switchyard::bfloat16>;
  using base = with<router::top_k_softmax>;
  using shared = with<router::shared<router::top_k_softmax>>;
  using clustered = with<router::adaptive_clustering<router::top_k_softmax>>;
  using stratified = with<router::stratified<router::top_k_softmax, Dims.experts / 2, Dims.experts - Dims.experts / 2>>;

  static constexpr std::size_t workspace_bytes(std::int64_t tokens) {
    return std::max({base::workspace_bytes(tokens), shared::workspace_bytes(tokens), clustered::workspace_bytes(tokens),
                     stratified::workspace_bytes(tokens)});
  }
};

enum method : int { base_router, shared_router, computed_weights, given_weights, two_strata };
constexpr std::array<char const*, 5> method_names{"base", "shared", "adaptive_clustering", "with given weights",
                                                  "stratified"};

/// What a call reads and writes, wherever that is. All layers have the base layer's matrices.
struct method_call {
  bfloat16 const *tokens, *gate_up, *down;
  float const* router;
  float const* ones;           ///< [experts, hidden]: a table of feature weights, weights and biases of norms
  std::int32_t const* labels;  ///< [tokens, top_k], as if the layer before had chosen so
  bfloat16* output;
  std::span<std::byte> workspace;
  std::int32_t* experts;  ///< [strata or 1, tokens, top_k], or null
  std::uint8_t* passes;   ///< [tokens], or null
};

template <class Layer>
void run(method_call const& call, std::int64_t tokens, bool given, typename Layer::context const& where) {
  constexpr shape dims = Layer::dims;
  typename Layer::args args{};
  args.tokens = Layer::rows(call.tokens, tokens);
  args.output = Layer::rows(call.output, tokens);
  args.workspace = call.workspace;
  auto const in = Layer::split_gate_up(call.gate_up);
  args.weights.up_proj = in.up;
  args.weights.down_proj = Layer::out_proj(call.down);
  args.decisions.experts = call.experts;
  support::optional_arguments<bfloat16> optional{.residual = args.tokens,
                                                 .router = {{call.router}},
                                                 .gate_proj = in.gate,
                                                 .clusters = {call.labels, dims.top_k, given ? call.ones : nullptr}};
  if constexpr (Layer::router_traits.stratification.strata > 0) {
    for (int i = 0; i < Layer::strata_or_one; ++i) {
      optional.router[i].weight = call.router + Layer::router::first_expert(i) * dims.hidden;
      optional.norm[i] = {call.ones, call.ones};
    }
    args.decisions.passes = call.passes;
  }
  support::set_arguments(args, optional);
  Layer::forward(args, where);
}

template <shape Dims, class Backend>
void run(method which, method_call const& call, std::int64_t tokens, typename Backend::context const& where) {
  using of = methods<Dims, Backend>;
  switch (which) {
    case base_router: return run<typename of::base>(call, tokens, false, where);
    case shared_router: return run<typename of::shared>(call, tokens, false, where);
    case computed_weights: return run<typename of::clustered>(call, tokens, false, where);
    case given_weights: return run<typename of::clustered>(call, tokens, true, where);
    case two_strata: return run<typename of::stratified>(call, tokens, false, where);
  }
}

/// Tokens and memory of one call on the GPU.
template <shape Dims>
struct device_method_call {
  using base = typename methods<Dims, gpu_backend>::base;

  device_method_call(std::int64_t count, std::uint32_t set, device_weights<base> const& weights)
      : tokens(count, skew::uniform, set, weights),
        ones(std::vector<float>(static_cast<std::size_t>(Dims.experts) * Dims.hidden, 1.0f)),
        experts(2 * count * Dims.top_k),
        labels(count * Dims.top_k),
        output(count * Dims.hidden),
        workspace(static_cast<std::int64_t>(methods<Dims, gpu_backend>::workspace_bytes(count))),
        passes(count) {
    run<Dims, gpu_backend>(base_router, call(labels.data()), count, {.stream = current_gpu().stream});
    check_cuda(cudaStreamSynchronize(current_gpu().stream));
  }
  method_call call(std::int32_t* experts_out, std::uint8_t* passes_out = nullptr) const {
    return {tokens.input.data(),
            tokens.weights->in.data(),
            tokens.weights->out.data(),
            tokens.weights->router.data(),
            ones.data(),
            labels.data(),
            output.data(),
            {workspace.data(), workspace.bytes()},
            experts_out,
            passes_out};
  }

  device_call<base> tokens;
  device_memory<float> ones;
  device_memory<std::int32_t> experts, labels;
  device_memory<bfloat16> output;
  device_memory<std::byte> workspace;
  device_memory<std::uint8_t> passes;
};

/// Every method against the CPU's layer, which the tests compare with float64; prints a line for each. A token whose
/// choice hangs on rounding, for a pass sees what the last one rounded, is left out and counted.
template <shape Dims>
bool methods_agree() {
  using base = typename methods<Dims, gpu_backend>::base;
  constexpr std::int64_t tokens = 40;
  cudaStream_t const stream = current_gpu().stream;
  device_weights<base> const weights(0);
  device_method_call<Dims> const on_gpu(tokens, 200, weights);
  auto const input = copied(on_gpu.tokens.input.data(), on_gpu.tokens.input.size());
  auto const in = copied(weights.in.data(), weights.in.size()), out = copied(weights.out.data(), weights.out.size());
  auto const router = copied(weights.router.data(), weights.router.size());
  std::vector<float> const ones(static_cast<std::size_t>(Dims.experts) * Dims.hidden, 1.0f);
  auto const labels = copied(on_gpu.labels.data(), on_gpu.labels.size());
  std::vector<std::byte> workspace(methods<Dims, backend::cpu>::workspace_bytes(tokens));
  std::vector<bfloat16> output(input.size());
  std::printf("Methods around %s, against the CPU\n", describe<base>().c_str());
  bool all = true;
  for (std::size_t m = 0; m < method_names.size(); ++m) {
    method const which = static_cast<method>(m);
    std::size_t const ids = static_cast<std::size_t>((which == two_strata ? 2 : 1) * tokens * Dims.top_k);
    std::vector<std::int32_t> experts(ids);
    run<Dims, backend::cpu>(which,
                            {input.data(), in.data(), out.data(), router.data(), ones.data(), labels.data(),
                             output.data(), workspace, experts.data(), nullptr},
                            tokens, {});
    run<Dims, gpu_backend>(which, on_gpu.call(on_gpu.experts.data()), tokens, {.stream = stream});
    check_cuda(cudaStreamSynchronize(stream));
    auto const got = copied(on_gpu.experts.data(), static_cast<std::int64_t>(ids));
    std::vector<bool> same(tokens, true);
    for (std::size_t pair = 0; pair < ids; ++pair) {
      if (got[pair] != experts[pair]) same[pair / Dims.top_k % tokens] = false;
    }
    auto const others = std::count(same.begin(), same.end(), false);
    device_memory<bfloat16> const right(output);
    double const error = distance(on_gpu.output.data(), right.data(), tokens, Dims.hidden, stream,
                                  [&](std::int64_t token) { return same[token]; });
    bool const agrees = error < bfloat16_tolerance && others <= (which == two_strata ? tokens / 8 : 1);
    std::printf("  %-20s error %.1e, %d tokens with other experts  %s\n", method_names[m], error,
                static_cast<int>(others), agrees ? "ok" : "FAILED");
    all = all && agrees;
  }
  std::fflush(stdout);
  return all;
}

struct method_times {
  std::array<timing, method_names.size()> time;
  double passes = 0.0;  ///< of a token in the stratified layer
};

/// The times of all methods for so many tokens, measured when the first is asked for.
template <shape Dims>
method_times const& times_of(std::int64_t tokens) {
  using base = typename methods<Dims, gpu_backend>::base;
  static std::optional<std::int64_t> measured;
  static method_times result;
  if (measured == tokens) return result;
  gpu_setup const& gpu = current_gpu();
  if (std::chrono::steady_clock::now() > gpu.deadline) throw std::runtime_error("no time left");
  std::vector<device_weights<base>> copies;
  for (std::uint32_t c = 0; c < 2; ++c) copies.emplace_back(c);
  double const bytes = costs<base>(tokens).bytes;
  int const turns = gpu.smoke ? 2 : static_cast<int>(std::clamp(4.0 * gpu.cache_bytes / bytes + 1.0, 2.0, 32.0));
  std::vector<std::unique_ptr<device_method_call<Dims>>> calls;
  for (int turn = 0; turn < turns; ++turn) {
    calls.push_back(std::make_unique<device_method_call<Dims>>(tokens, static_cast<std::uint32_t>(turn),
                                                               copies[turn % copies.size()]));
  }
  std::vector<contender> contenders;
  for (std::size_t m = 0; m < method_names.size(); ++m) {
    contenders.push_back({method_names[m],
                          [&calls, which = static_cast<method>(m), tokens](int turn) {
                            run<Dims, gpu_backend>(which, calls[turn]->call(nullptr), tokens,
                                                   {.stream = current_gpu().stream});
                          },
                          tokens <= 64});
  }
  schedule plan{.turns = turns};
  if (gpu.smoke) plan = {.turns = turns, .seconds = 0.0, .sample_seconds = 0.0, .least_rounds = 1, .most_rounds = 1};
  std::vector<timing> const times = take_turns(contenders, plan, gpu.stream);
  std::copy(times.begin(), times.end(), result.time.begin());
  run<Dims, gpu_backend>(two_strata, calls[0]->call(nullptr, calls[0]->passes.data()), tokens, {.stream = gpu.stream});
  check_cuda(cudaStreamSynchronize(gpu.stream));
  result.passes = 0.0;
  for (std::uint8_t made : copied(calls[0]->passes.data(), tokens)) result.passes += made;
  result.passes /= static_cast<double>(tokens);
  measured = tokens;
  return result;
}

template <shape Dims>
void report_method(benchmark::State& state, std::int64_t tokens, int which) {
  try {
    method_times const& all = times_of<Dims>(tokens);
    for (auto _ : state) state.SetIterationTime(all.time[which].median);
    state.counters["x_base"] = all.time[which].median / all.time[base_router].median;
    if (which == two_strata) state.counters["passes"] = all.passes;
    state.counters["tokens/s"] =
        benchmark::Counter(static_cast<double>(tokens), benchmark::Counter::kIsIterationInvariantRate);
    state.counters["samples"] = all.time[which].samples;
    state.counters["spread"] = (all.time[which].most - all.time[which].least) / all.time[which].median;
    state.counters["graph"] = all.time[which].replayed ? 1.0 : 0.0;
  } catch (std::exception const& e) {
    all_lines_are_right() = false;
    state.SkipWithError(e.what());
  }
}

template <shape Dims>
bool add_methods(bool small) {
  auto const add_lines = [] {
    std::vector<std::int64_t> cases{1, 64, 512, 2048, 8192};
    if (current_gpu().smoke) cases = {1, 70};
    for (std::int64_t tokens : cases) {
      for (std::size_t m = 0; m < method_names.size(); ++m) {
        std::string const name = std::string(method_names[m]) + "/methods around " +
                                 describe<typename methods<Dims, gpu_backend>::base>() +
                                 "/tokens:" + std::to_string(tokens) + "/skew:uniform";
        benchmark::RegisterBenchmark(name.c_str(), report_method<Dims>, tokens, static_cast<int>(m))
            ->UseManualTime()
            ->Unit(benchmark::kMillisecond)
            ->Iterations(1);
      }
    }
  };
  bench_layers().push_back({small, methods_agree<Dims>, add_lines});
  return true;
}

// OLMoE's shape, and a small one for smoke runs.
bool const added = add_methods<shape{.hidden = 2048, .intermediate = 1024, .experts = 64, .top_k = 8}>(false) &&
                   add_methods<shape{.hidden = 64, .intermediate = 96, .experts = 8, .top_k = 2}>(true);

}  // namespace

}  // namespace switchyard::bench
