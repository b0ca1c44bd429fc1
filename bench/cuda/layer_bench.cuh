#pragma once

#include "../work.hpp"
#include "check.cuh"
#include "compare.cuh"
#include "gpu_backend.cuh"
#include "hopper.cuh"
#include "memory.cuh"
#include "peers.cuh"
#include "setup.hpp"
#include "timing.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

/// How a layer becomes lines of the table: include this in a file that names one layer.
namespace switchyard::bench {

/// What a line tells.
struct line_result {
  timing time;
  work least;
  double error = 0.0;   // of a peer: the distance of its output from ours
  std::string failure;  // of a peer that does not run; nothing else is then told
};

// The lines of a case, in this order. On Hopper also its products alone, and the experts on backend::cuda.
enum line : int {
  forward_line,
  route_line,
  plan_line,
  experts_line,
  in_line,
  out_line,
  cuda_line,
  loop_line,
  grouped_line,
  dense_line,
  all_lines
};
inline constexpr char const* line_names[] = {"forward",
                                             "route",
                                             "plan",
                                             "experts",
                                             "product (in)",
                                             "product (out)",
                                             "peer/backend::cuda",
                                             "peer/cublas_loop",
                                             "peer/cublas_grouped",
                                             "peer/dense"};
template <class Layer>
bool has_line(int line, std::int64_t tokens) {
  if (line >= loop_line) return current_gpu().peer != nullptr;
  return line == cuda_line ? on_hopper : line < in_line || has_grouped_products<Layer>(tokens);
}

/// Weights and results of the layer whose lines are running.
template <class Layer>
class layer_runs {
 public:
  using element = typename Layer::element;
  static constexpr shape dims = Layer::dims;

  layer_runs() {
    std::int64_t const bytes = costs<Layer>(0).parameters * std::int64_t{sizeof(element)};
    std::int64_t const beyond_cache = current_gpu().smoke ? 1 : 4 * current_gpu().cache_bytes / bytes + 1;
    std::int64_t const copies = std::max<std::int64_t>(beyond_cache, bytes < (std::int64_t{2} << 30) ? 2 : 1);
    for (std::int64_t c = 0; c < copies; ++c) copies_.emplace_back(static_cast<std::uint32_t>(c));
  }

  /// The lines of a case; measured together when the first of them is asked for.
  std::vector<line_result> const& results(bench_case const& which) {
    if (!measured_ || measured_->tokens != which.tokens || measured_->spread != which.spread) {
      if (std::chrono::steady_clock::now() > current_gpu().deadline) throw std::runtime_error("no time left");
      results_.clear();
      measured_ = which;
      results_ = measure(which);
    }
    return results_;
  }

 private:
  std::vector<line_result> measure(bench_case const& which) const {
    gpu_setup const& gpu = current_gpu();
    std::int64_t const tokens = which.tokens;
    using backend = typename Layer::backend;

    // So many sets of tokens that a round of calls reads several times what the L2 holds.
    double const bytes = costs<Layer>(tokens).bytes;
    int const turns = gpu.smoke ? 2 : static_cast<int>(std::clamp(4.0 * gpu.cache_bytes / bytes + 1.0, 2.0, 32.0));
    device_memory<element> const output(tokens * dims.hidden);
    std::vector<device_call<Layer>> calls;
    for (int turn = 0; turn < turns; ++turn) {
      calls.emplace_back(tokens, which.spread, static_cast<std::uint32_t>(turn), copies_[turn % copies_.size()]);
      calls.back().plan(output.data(), gpu.stream);
    }

    bool const few = tokens <= 64;
    cuda_context const where{.stream = gpu.stream};
    auto const args = [&](int turn) { return calls[turn].args(output.data()); };
    std::vector<contender> contenders{
        {line_names[forward_line], [&](int turn) { Layer::forward(args(turn), where); }, few},
        // Routing and planning take microseconds at any number of tokens: enqueued, they would be timed by the host.
        {line_names[route_line], [&](int turn) { backend::template route<Layer>(args(turn), where); }, true},
        {line_names[plan_line], [&](int turn) { backend::template plan<Layer>(args(turn), where); }, true},
        {line_names[experts_line], [&](int turn) { backend::template experts<Layer>(args(turn), where); }, few}};
    std::vector<line_result> result(all_lines);
    std::vector<int> lines{forward_line, route_line, plan_line, experts_line};
    if constexpr (on_hopper) {
      using products = switchyard::backend::device::hopper_launches<default_hopper_tuning>;
      if (has_grouped_products<Layer>(tokens)) {
        auto const of = [&](int turn) { return hopper_parts::products(args(turn)); };
        contenders.push_back(
            {line_names[in_line], [&](int turn) { products::enqueue_first<Layer>(where, of(turn).first); }, few});
        contenders.push_back(
            {line_names[out_line], [&](int turn) { products::enqueue_second<Layer>(where, of(turn).second); }, few});
        lines.insert(lines.end(), {in_line, out_line});
      }
      contenders.push_back({line_names[cuda_line],
                            [&](int turn) {
                              using other = on_backend<Layer, switchyard::backend::cuda>;
                              switchyard::backend::cuda::experts<other>(same_args<other>(args(turn)), where);
                            },
                            few});
      lines.push_back(cuda_line);
    }
    std::unique_ptr<peers<Layer>> others;
    if (gpu.peer != nullptr) {
      others = std::make_unique<peers<Layer>>(calls, tokens, *gpu.peer, gpu.stream);
      Layer::forward(args(0), where);
      for (auto const how : {peer_products::loop, peer_products::grouped, peer_products::dense}) {
        int const line = loop_line + static_cast<int>(how);
        try {
          check_cuda(cudaMemsetAsync(others->output(), 0xff, output.bytes(), gpu.stream));
          others->run(how, 0);
          check_cuda(cudaStreamSynchronize(gpu.stream));
        } catch (std::exception const& e) {  // the others still count
          result[line].failure = e.what();
          continue;
        }
        if (how != peer_products::dense) {
          result[line].error = distance(others->output(), output.data(), tokens, dims.hidden, gpu.stream,
                                        [](std::int64_t) { return true; });
        }
        contenders.push_back({line_names[line], [&others, how](int turn) { others->run(how, turn); }, few});
        lines.push_back(line);
      }
    }
    schedule plan{.turns = turns};
    if (gpu.smoke) plan = {.turns = turns, .seconds = 0.0, .sample_seconds = 0.0, .least_rounds = 1, .most_rounds = 1};
    std::vector<timing> const times = take_turns(contenders, plan, gpu.stream);

    work all{}, routing = route_work<Layer>(tokens);
    for (auto const& call : calls) all = all + forward_work<Layer>(tokens, call.rows, call.experts_used);
    all = {all.flops / turns, all.bytes / turns};
    // Of the layer without its router: tokens in, weights of the experts used, output.
    work const experts{all.flops - routing.flops,
                       all.bytes - sizeof(float) * static_cast<double>(dims.experts) * dims.hidden};
    // Ids read, pairs and rows written.
    work const planning{0.0, 12.0 * static_cast<double>(tokens * dims.top_k)};
    for (std::size_t i = 0; i < times.size(); ++i) {
      int const line = lines[i];
      result[line].time = times[i];
      // Each product has its share of the experts' multiplications, and of their weights.
      constexpr double inputs = Layer::expert_traits.input_projections(), in_share = inputs / (inputs + 1.0);
      result[line].least = line == forward_line ? all
                           : line == route_line ? routing
                           : line == plan_line  ? planning
                           : line == in_line    ? work{in_share * experts.flops, in_share * experts.bytes}
                           : line == out_line ? work{(1.0 - in_share) * experts.flops, (1.0 - in_share) * experts.bytes}
                                              : experts;
    }
    return result;
  }

  std::vector<device_weights<Layer>> copies_;
  std::optional<bench_case> measured_;
  std::vector<line_result> results_;
};

inline std::shared_ptr<void>& current_runs() {
  static std::shared_ptr<void> runs;
  return runs;
}

/// One layer's memory at a time: made when a line first asks for it, released when a line of another layer does.
template <class Layer>
layer_runs<Layer>& runs_of() {
  static std::weak_ptr<layer_runs<Layer>> mine;
  if (auto const present = mine.lock()) return *present;
  current_runs().reset();
  auto const fresh = std::make_shared<layer_runs<Layer>>();
  current_runs() = fresh;
  mine = fresh;
  return *fresh;
}

template <class Layer>
void report(benchmark::State& state, bench_case const& which, int line) {
  try {
    std::vector<line_result> const& all = runs_of<Layer>().results(which);
    if (all.empty()) throw std::runtime_error("the case failed before");
    line_result const& r = all[line];
    if (!r.failure.empty()) throw std::runtime_error(r.failure);
    for (auto _ : state) state.SetIterationTime(r.time.median);

    auto const rate = [](double each) {
      return benchmark::Counter(each, benchmark::Counter::kIsIterationInvariantRate);
    };
    ceilings const& most = current_gpu().machine;
    state.counters["tokens/s"] = rate(static_cast<double>(which.tokens));
    state.counters["flop/s"] = rate(r.least.flops);
    state.counters["bytes/s"] = rate(r.least.bytes);
    if (most.flops > 0.0) {
      state.counters["floor_share"] = rate(std::max(r.least.flops / most.flops, r.least.bytes / most.bytes));
    }
    state.counters["samples"] = r.time.samples;
    state.counters["spread"] = (r.time.most - r.time.least) / r.time.median;
    state.counters["graph"] = r.time.replayed ? 1.0 : 0.0;
    if (line >= cuda_line) {
      state.counters["forward_over_peer"] = r.time.median / all[forward_line].time.median;
      state.counters["experts_over_peer"] = r.time.median / all[experts_line].time.median;
    }
    if (line == loop_line || line == grouped_line) {
      state.counters["error"] = r.error;
      if (!(r.error < bfloat16_tolerance)) {
        all_lines_are_right() = false;
        state.SetLabel("OTHER OUTPUT THAN OURS");
      }
    }
  } catch (std::exception const& e) {
    all_lines_are_right() = false;
    state.SkipWithError(e.what());
  }
}

/// Adds a layer to the bench. `small`: a smoke run takes it, and nothing else does.
template <class Layer>
bool add_layer(bool small = false) {
  auto const add_lines = [] {
    std::vector<bench_case> cases{
        {1, skew::uniform},    {8, skew::uniform}, {64, skew::uniform},   {64, skew::zipf},   {512, skew::uniform},
        {2048, skew::uniform}, {2048, skew::zipf}, {8192, skew::uniform}, {8192, skew::zipf}, {32768, skew::uniform}};
    if (current_gpu().smoke) cases = {{1, skew::uniform}, {40, skew::zipf}, {70, skew::uniform}};
    for (bench_case const& which : cases) {
      for (int line = 0; line < all_lines; ++line) {
        if (!has_line<Layer>(line, which.tokens)) continue;
        std::string const name = std::string(line_names[line]) + "/" + describe<Layer>() +
                                 "/tokens:" + std::to_string(which.tokens) + "/skew:" + name_of(which.spread);
        benchmark::RegisterBenchmark(name.c_str(), report<Layer>, which, line)
            ->UseManualTime()
            ->Unit(benchmark::kMillisecond)
            ->Iterations(1);
      }
    }
  };
  bench_layers().push_back({small, [] { return agrees_with_double<Layer>(); }, add_lines});
  return true;
}

}  // namespace switchyard::bench
