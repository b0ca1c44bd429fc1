#include "../ceilings.hpp"
#include "../memory.hpp"
#include "../samples.hpp"
#include "peer.hpp"
#include "turns.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <initializer_list>
#include <list>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

// Ours against loops over experts of libraries of matrix products: the same tokens, weights and routes, taking turns in one
// run.
namespace {

namespace sy = switchyard;
namespace bench = switchyard::bench;
namespace peers = switchyard::bench::peers;

/// As `presets::switch_base_8`, without dropping: the peers do not drop either.
template <class Element>
using switch_base = sy::layer<sy::presets::switch_base_8<>::dims, sy::router::switch_top1, sy::capacity::dropless,
                              sy::expert::mlp<sy::relu>, sy::backend::cpu, Element>;

/// As `presets::sigma_moe_wikitext103_small`, with as many experts as the published variant of that width has.
template <class Element>
using sigma_of_128 =
    sy::layer<sy::shape{.hidden = 412, .intermediate = 128, .experts = 128, .top_k = 4}, sy::router::sigma_moe,
              sy::capacity::dropless, sy::expert::mlp<sy::relu>, sy::backend::cpu, Element>;

template <class Element>
double distance(std::vector<Element> const& a, std::vector<Element> const& b) {
  double difference = 0.0, length = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    double const x = static_cast<float>(a[i]), y = static_cast<float>(b[i]);
    difference += (x - y) * (x - y);
    length += y * y;
  }
  return std::sqrt(difference / length);
}

struct options {
  int threads = 2;
  std::string filter;
  bench::ceilings machine;
  bool agrees = true;
};

/// One model and element type: all numbers of tokens.
template <class Layer>
class comparison {
 public:
  using element = typename Layer::element;
  static constexpr sy::shape dims = Layer::dims;
  static constexpr bool gated = Layer::expert_traits.gated;
  static constexpr double expert_values = (gated ? 3.0 : 2.0) * dims.hidden * dims.intermediate;

  comparison(std::string name, options& with) : name_(std::move(name)), with_(with) {}

  /// Every round each contender runs once, on the next token set and the next copy of the weights.
  void at(std::int64_t tokens, int rounds) {
    std::string const line = name_ + "/" + std::string(sy::element_name<element>) + "/tokens:" + std::to_string(tokens);
    if (line.find(with_.filter) == std::string::npos) return;
    if (!memory_) start();
    memory_->prepare(tokens, bench::skew::uniform);
    ours_.resize(tokens * dims.hidden);
    theirs_.resize(ours_.size());
    double used = 0.0;
    for (auto const& data : memory_->data()) used += data.experts_used / static_cast<double>(memory_->data().size());
    std::vector<absence> left_out = absent_;
    // Those that run this case, ours first.
    std::vector<contender const*> running;
    double error = 0.0;
    {  // once on the same data: compares outputs, touches all memory, starts all threads
      auto&& [data, weights] = memory_->next();
      for (contender const& c : contenders_) {
        try {
          for (auto const& set : memory_->data()) c.prepare(tokens, set.experts.data());
          c.run(data, weights);
        } catch (std::exception const& e) {
          if (running.empty()) throw;  // that is us
          left_out.push_back({c.name, e.what()});
          continue;
        }
        if (!running.empty()) error = std::max(error, distance(theirs_, ours_));
        running.push_back(&c);
      }
    }
    std::vector<std::function<void()>> calls;
    for (contender const* c : running) {
      calls.push_back([this, c] {
        auto&& [data, weights] = memory_->next();
        c->run(data, weights);
      });
    }
    std::vector<peers::call_times> const times = peers::in_turns(calls, rounds, with_.threads);

    double const flops = 2.0 * expert_values * static_cast<double>(tokens * dims.top_k);
    double const bytes = used * expert_values * sizeof(element);
    bench::ceilings const& most = with_.machine;
    double const by_flops = flops / most.peak<element>(), by_bytes = bytes / most.bytes;
    double const limit = std::max(by_flops, by_bytes);
    std::printf("\n%s   limit %.2f ms (%s)\n", line.c_str(), limit * 1e3,
                by_flops > by_bytes ? "arithmetic" : "memory");
    for (std::size_t c = 0; c < times.size(); ++c) {
      bench::samples_range const time = bench::range_of(times[c].wall);
      std::printf("  %-44s %9.2f ms (%.2f - %.2f) %8.2f x limit %8.1f GFLOP/s %6.1f GB/s", running[c]->name.c_str(),
                  time.median * 1e3, time.least * 1e3, time.most * 1e3, time.median / limit, flops / time.median / 1e9,
                  bytes / time.median / 1e9);
      if (c > 0) {
        bench::samples_range const faster = bench::ratios_of(times[c].wall, times[0].wall);
        std::printf(" %7.2fx (%.2f - %.2f) %7.2fx cpu", faster.median, faster.least, faster.most,
                    bench::ratios_of(times[c].cpu, times[0].cpu).median);
      }
      std::printf("\n");
    }
    for (absence const& one : left_out) std::printf("  %-44s left out: %s\n", one.name.c_str(), one.why.c_str());
    std::fflush(stdout);
    constexpr double allowed = std::is_same_v<element, float> ? 1e-4 : 2e-2;
    if (error > allowed) std::printf("  the outputs differ by %.1e\n", error);
    with_.agrees = with_.agrees && error <= allowed;
  }

 private:
  struct contender {
    std::string name;
    std::function<void(std::int64_t tokens, std::int32_t const* routes)> prepare;
    std::function<void(bench::call_data<element>&, bench::weight_copy<element> const&)> run;
  };
  /// A peer that does not run here, and what it says.
  struct absence {
    std::string name, why;
  };

  /// Makes the weights: more than 2.5 GB of them.
  void start() {
    double const bytes = dims.experts * expert_values * sizeof(element);
    memory_ = std::make_unique<bench::layer_memory<element>>(
        bench::facts_of<Layer>(), static_cast<std::int64_t>(2.5e9 / bytes) + 1, with_.threads);
    peers::problem<element> problem{dims.hidden, dims.intermediate, dims.experts, dims.top_k, gated, {}};
    for (auto const& copy : memory_->copies()) {
      auto const& weights = copy.call();
      problem.copies.push_back({weights.gate_proj.data, weights.up_proj.data, weights.down_proj.data});
    }
    contenders_.push_back({"switchyard", [](std::int64_t, std::int32_t const*) {},
                           [this](auto& data, auto const& weights) {
                             bench::call_memory<element> call = data.memory(weights);
                             call.output = ours_.data();
                             call.workspace = memory_->workspace();
                             Layer::forward(bench::args_of<Layer>(call), memory_->where());
                           }});
#if defined(SWITCHYARD_PEER_ONEDNN)
    add(problem, peers::onednn_name(), [&] { return peers::onednn(problem, with_.threads); });
#endif
#if defined(SWITCHYARD_PEER_OPENBLAS)
    if constexpr (std::is_same_v<element, float>) {
      add(problem, peers::openblas_name(), [&] { return peers::openblas(problem); });
    }
#endif
  }

  /// Both ways of a peer. A library that does not make such products on this processor says so here, or in the first call.
  template <class Make>
  void add(peers::problem<element> const& problem, std::string const& peer_name, Make const& make) {
    peers::loop_over_experts<element>* peer = nullptr;
    try {
      peer = &peers_.emplace_back(problem, make(), with_.threads);
    } catch (std::exception const& e) {
      absent_.push_back({peer_name, e.what()});
      return;
    }
    for (auto how : {peers::threading::one_expert_each, peers::threading::inside_products}) {
      bool const each = how == peers::threading::one_expert_each;
      contenders_.push_back({peer_name + (each ? ", one expert per thread" : ", threads inside"),
                             [peer](std::int64_t tokens, std::int32_t const* routes) { peer->prepare(tokens, routes); },
                             [this, peer, how](auto& data, auto const& weights) {
                               peer->forward(
                                   {data.tokens, data.input.data(), data.experts.data(), data.weight.data(),
                                    theirs_.data(), static_cast<std::size_t>(&weights - memory_->copies().data())},
                                   how);
                             }});
    }
  }

  std::string name_;
  options& with_;
  std::unique_ptr<bench::layer_memory<element>> memory_;
  std::vector<element> ours_, theirs_;
  std::list<peers::loop_over_experts<element>> peers_;
  std::vector<contender> contenders_;
  std::vector<absence> absent_;
};

template <class Layer>
void compare(std::string const& name, options& with, std::initializer_list<std::pair<std::int64_t, int>> cases) {
  comparison<Layer> layer(name, with);
  for (auto const& [tokens, rounds] : cases) layer.at(tokens, rounds);
}

template <class Element>
void compare_sigma(options& with) {
  auto const cases = {std::pair{std::int64_t{64}, 41}, {256, 25}, {1024, 15}, {8192, 7}};
  compare<sy::presets::sigma_moe_wikitext103_small<Element>>("sigma_16", with, cases);
  compare<sy::presets::sigma_moe_wikitext103_big<Element>>("sigma_32", with, cases);
  compare<sigma_of_128<Element>>("sigma_128", with, cases);
}

}  // namespace

int main(int argc, char** argv) {
  options with;
  if (argc > 1) with.threads = std::atoi(argv[1]);
  if (argc > 2) with.filter = argv[2];
  if (with.threads < 1 || argc > 3) {
    std::fputs(
        "usage: peers_bench [threads, default 2] [only cases whose names contain this, such as olmoe/bfloat16 or "
        "tokens:64]\n",
        stderr);
    return 1;
  }
  with.machine = bench::measure_ceilings(with.threads, 4.0);
  std::printf("%d threads, %s; ceilings: %.0f GFLOP/s of float", with.threads,
              std::string(sy::name_of(sy::cpu::resolved({}).instructions)).c_str(), with.machine.flops / 1e9);
  if (with.machine.tile_flops > 0.0) std::printf(", %.0f GFLOP/s of bfloat16 tiles", with.machine.tile_flops / 1e9);
  std::printf(", %.1f GB/s read\n", with.machine.bytes / 1e9);

  using sy::bfloat16;
  compare<sy::presets::olmoe_1b_7b<bfloat16>>("olmoe", with, {{1, 41}, {8, 25}, {64, 15}, {512, 9}, {2048, 5}});
  compare<sy::presets::qwen3_30b_a3b<bfloat16>>("qwen3", with, {{1, 41}, {8, 25}, {64, 15}, {1024, 7}});
  compare<switch_base<bfloat16>>("switch", with, {{1, 101}, {64, 41}, {1024, 15}, {4096, 7}});
  compare<sy::presets::mixtral_8x7b<bfloat16>>("mixtral", with, {{1, 15}, {128, 7}});
  compare_sigma<bfloat16>(with);
  compare<sy::presets::olmoe_1b_7b<float>>("olmoe", with, {{1, 41}, {8, 25}, {64, 15}, {512, 9}, {2048, 5}});
  compare<sy::presets::qwen3_30b_a3b<float>>("qwen3", with, {{1, 41}, {64, 15}, {1024, 7}});
  compare<switch_base<float>>("switch", with, {{1, 101}, {64, 41}, {1024, 15}, {4096, 7}});
  compare_sigma<float>(with);

  std::printf(
      "\nMedians of calls in turn, on cold weights, and in brackets the least and the most. limit: the least time for "
      "the experts' products, by arithmetic or "
      "by\n"
      "reading the weights of the experts chosen. Last columns: our speed over the peer's, by wall time and by what "
      "the\n"
      "process computed, medians of the rounds' ratios; above 1 we are faster. We also route; the peers get the "
      "routes, and weights packed "
      "beforehand.\n");
  if (!with.agrees) std::printf("Outputs differ.\n");
  return with.agrees ? 0 : 1;
}
