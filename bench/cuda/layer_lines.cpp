#include "distance.hpp"
#include "memory.hpp"
#include "peers.hpp"
#include "setup.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

// How a layer becomes lines of the table.
namespace switchyard::bench {

int turns_for(double bytes_of_a_call) {
  gpu_setup const& gpu = current_gpu();
  double const turns = 4.0 * static_cast<double>(gpu.cache_bytes) / bytes_of_a_call + 1.0;
  return gpu.smoke ? 2 : static_cast<int>(std::clamp(turns, 2.0, 32.0));
}

namespace {

/// What a line tells.
struct line_result {
  timing time;
  work least;
  double error = 0.0;   // of a peer: the distance of its output from ours
  std::string failure;  // of a peer that does not run; nothing else is then told
};

/// The lines of a case, in this order: our steps, then the peers, which begin with our own other backend.
constexpr struct {
  char const* name;
  enum step step;
  enum peer peer;
  bool always_replayed;  // takes microseconds at any number of tokens: enqueued, it would be timed by the host
} all_lines[] = {{"forward", whole_step, {}, false},
                 {"route", route_step, {}, true},
                 {"plan", plan_step, {}, true},
                 {"experts", experts_step, {}, false},
                 {"product (in)", in_step, {}, false},
                 {"product (out)", out_step, {}, false},
                 {"peer/backend::cuda", cuda_step, {}, false},
                 {"peer/cublas_loop", all_steps, peer::loop, false},
                 {"peer/cublas_grouped", all_steps, peer::grouped, false},
                 {"peer/cub_cublas", all_steps, peer::cub, false},
                 {"peer/dense", all_steps, peer::dense, false}};
constexpr std::size_t line_count = std::size(all_lines), forward_line = 0, experts_line = 3, first_peer = 6;

bool has_line(gpu_layer const& of, std::size_t line, std::int64_t tokens) {
  step const which = all_lines[line].step;
  if (which == all_steps) return current_gpu().peer != nullptr;
  if (which == in_step || which == out_step) return of.has_grouped_products(tokens);
  return of.enqueue[which] != nullptr;
}

/// Weights and results of the layer whose lines are running.
class layer_runs {
 public:
  explicit layer_runs(gpu_layer const& of) : of_(of) {
    std::int64_t const bytes = of.costs(0, -1.0).parameters * std::int64_t{sizeof(bfloat16)};
    std::int64_t const beyond_cache = current_gpu().smoke ? 1 : 4 * current_gpu().cache_bytes / bytes + 1;
    std::int64_t const copies = std::max<std::int64_t>(beyond_cache, bytes < (std::int64_t{2} << 30) ? 2 : 1);
    for (std::int64_t c = 0; c < copies; ++c) copies_.emplace_back(of, static_cast<std::uint32_t>(c));
  }

  gpu_layer const& layer() const { return of_; }

  /// The lines of a case; measured together when the first of them is asked for.
  std::vector<line_result> const& results(bench_case const& which) {
    if (!measured_ || measured_->tokens != which.tokens || measured_->spread != which.spread) {
      begin_case();
      results_.clear();
      measured_ = which;
      results_ = measure(which);
    }
    if (results_.empty()) throw std::runtime_error("the case failed before");
    return results_;
  }

 private:
  std::vector<line_result> measure(bench_case const& which) const {
    gpu_setup const& gpu = current_gpu();
    std::int64_t const tokens = which.tokens;
    int const turns = turns_for(of_.costs(tokens, -1.0).bytes);
    device_memory<bfloat16> const output(tokens * of_.dims.hidden);
    std::vector<device_call> calls;
    for (int turn = 0; turn < turns; ++turn) {
      calls.emplace_back(of_, tokens, which.spread, static_cast<std::uint32_t>(turn),
                         copies_[static_cast<std::size_t>(turn) % copies_.size()]);
      calls.back().plan(output.data(), gpu.stream);
    }

    bool const few = tokens <= 64;
    std::vector<line_result> result(line_count);
    std::vector<contender> contenders;
    std::vector<std::size_t> lines;
    std::unique_ptr<peers> others;
    for (std::size_t i = 0; i < line_count; ++i) {
      auto const& line = all_lines[i];
      if (!has_line(of_, i, tokens)) continue;
      if (line.step != all_steps) {
        contenders.push_back({line.name,
                              [&calls, &output, &gpu, step = of_.enqueue[line.step]](int turn) {
                                step(calls[static_cast<std::size_t>(turn)].memory(output.data()), gpu.stream);
                              },
                              few || line.always_replayed});
        lines.push_back(i);
        continue;
      }
      if (others == nullptr) {
        others = std::make_unique<peers>(calls, *gpu.peer, gpu.stream);
        of_.enqueue[whole_step](calls[0].memory(output.data()), gpu.stream);
      }
      try {
        check_cuda(cudaMemsetAsync(others->output(), 0xff, output.bytes(), gpu.stream));
        others->run(line.peer, 0);
        check_cuda(cudaStreamSynchronize(gpu.stream));
      } catch (std::exception const& e) {  // the others still count
        result[i].failure = e.what();
        continue;
      }
      if (line.peer != peer::dense) {
        result[i].error = distance(others->output(), output.data(), tokens, of_.dims.hidden, gpu.stream,
                                   [](std::int64_t) { return true; });
      }
      contenders.push_back({line.name, [&others, how = line.peer](int turn) { others->run(how, turn); }, few});
      lines.push_back(i);
    }
    std::vector<timing> const times =
        take_turns(contenders, gpu.smoke ? once(turns) : schedule{.turns = turns}, gpu.stream);

    work all{}, routing = of_.route_work(tokens);
    for (auto const& call : calls) all = all + of_.forward_work(tokens, call.rows, call.experts_used);
    all = {all.flops / turns, all.bytes / turns};
    // Of the layer without its router: tokens in, weights of the experts used, output.
    work const experts{all.flops - routing.flops,
                       all.bytes - sizeof(float) * static_cast<double>(of_.dims.experts) * of_.dims.hidden};
    // Ids read, pairs and rows written.
    work const planning{0.0, 12.0 * static_cast<double>(tokens * of_.dims.top_k)};
    // Each product has its share of the experts' multiplications, and of their weights.
    double const inputs = of_.expert.input_projections(), in_share = inputs / (inputs + 1.0);
    for (std::size_t i = 0; i < times.size(); ++i) {
      std::size_t const line = lines[i];
      result[line].time = times[i];
      switch (all_lines[line].step) {
        case whole_step: result[line].least = all; break;
        case route_step: result[line].least = routing; break;
        case plan_step: result[line].least = planning; break;
        case in_step: result[line].least = {in_share * experts.flops, in_share * experts.bytes}; break;
        case out_step: result[line].least = {(1.0 - in_share) * experts.flops, (1.0 - in_share) * experts.bytes}; break;
        default: result[line].least = experts;
      }
    }
    return result;
  }

  gpu_layer const& of_;
  std::vector<device_weights> copies_;
  std::optional<bench_case> measured_;
  std::vector<line_result> results_;
};

/// One layer's memory at a time: made when a line first asks for it, released when a line of another layer does.
layer_runs& runs_of(gpu_layer const& of) {
  static std::unique_ptr<layer_runs> current;
  if (current == nullptr || &current->layer() != &of) {
    current.reset();
    current = std::make_unique<layer_runs>(of);
  }
  return *current;
}

void report(benchmark::State& state, gpu_layer const& of, bench_case const& which, std::size_t line) {
  std::vector<line_result> const& all = runs_of(of).results(which);
  line_result const& r = all[line];
  if (!r.failure.empty()) throw left_out(r.failure);
  report_time(state, r.time);
  ceilings const& most = current_gpu().machine;
  state.counters["tokens/s"] = rate_of(static_cast<double>(which.tokens));
  state.counters["flop/s"] = rate_of(r.least.flops);
  state.counters["bytes/s"] = rate_of(r.least.bytes);
  if (most.flops > 0.0) {
    state.counters["floor_share"] = rate_of(std::max(r.least.flops / most.flops, r.least.bytes / most.bytes));
  }
  if (line < first_peer) return;
  samples_range const forward = ratios_of(r.time.rounds, all[forward_line].time.rounds);
  state.counters["forward_over_peer"] = forward.median;
  state.counters["forward_over_peer_spread"] = forward.spread();
  state.counters["experts_over_peer"] = ratios_of(r.time.rounds, all[experts_line].time.rounds).median;
  if (all_lines[line].step != all_steps || all_lines[line].peer == peer::dense) return;
  state.counters["error"] = r.error;
  if (!(r.error < bfloat16_tolerance)) {
    all_lines_are_right() = false;
    state.SetLabel("OTHER OUTPUT THAN OURS");
  }
}

}  // namespace

void add_layer_lines() {
  bool const smoke = current_gpu().smoke;
  // What matters most of every layer comes first, for a run may end early.
  std::vector<std::vector<bench_case>> rounds{
      {{8192, skew::uniform}, {64, skew::uniform}},
      {{1, skew::uniform}, {512, skew::uniform}, {2048, skew::uniform}, {32768, skew::uniform}, {8192, skew::zipf}},
      {{8, skew::uniform}, {64, skew::zipf}, {2048, skew::zipf}}};
  if (smoke) rounds = {{{1, skew::uniform}, {40, skew::zipf}, {70, skew::uniform}}};
  for (auto const& cases : rounds) {
    for (auto const& [place, layer] : compiled_layers()) {
      if ((place == 0) != smoke) continue;
      for (bench_case const& which : cases) {
        for (std::size_t line = 0; line < line_count; ++line) {
          if (!has_line(layer, line, which.tokens)) continue;
          add_line(std::string(all_lines[line].name) + "/" + layer.name + "/tokens:" + std::to_string(which.tokens) +
                       "/skew:" + name_of(which.spread),
                   [&of = layer, which, line](benchmark::State& state) { report(state, of, which, line); });
        }
      }
    }
  }
}

}  // namespace switchyard::bench
