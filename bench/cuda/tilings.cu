#include "gpu_backend.cuh"
#include "hopper.cuh"
#include "memory.cuh"
#include "setup.hpp"
#include "timing.hpp"

#include <switchyard/presets.hpp>

#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

// The two products of Hopper with other tiles than the default ones: what `default_hopper_tuning` is to be chosen from.
// All of a layer's take turns in one run. Prints nothing on other GPUs.
namespace switchyard::bench {

namespace {

#if defined(SWITCHYARD_BENCH_ON_HOPPER)

using enum hopper_schedule;
template <int Rows, int Columns, hopper_schedule Schedule, int Cluster = 2, int Group = 8>
using tiling =
    backend::device::grouped_tiling<Rows, Columns, hopper_stages(Rows, Columns, 512, 7), Schedule, Cluster, Group>;

template <class... Tilings>
struct tilings {};
using for_both = tilings<tiling<128, 256, cooperative>, tiling<128, 256, cooperative, 1>,
                         tiling<128, 256, cooperative, 2, 4>, tiling<128, 256, cooperative, 2, 16>,
                         tiling<256, 128, cooperative>, tiling<128, 128, ping_pong>, tiling<64, 256, ping_pong>>;
/// Gated columns are cut in two, so that 192 are for the second product alone.
using for_second = tilings<tiling<128, 192, cooperative>, tiling<128, 192, ping_pong>>;

struct named_product {
  std::string name;
  bool first;
  std::function<void(int turn)> enqueue;
};

template <class Layer, class Problem, bool First, class Args, class... Tilings>
void add(std::vector<named_product>& to, Args const& args, cuda_context const& where, tilings<Tilings...>) {
  auto const name = [](auto const& t) {
    using tile = std::remove_cvref_t<decltype(t)>;
    return std::string(First ? "in" : "out") + ":" + std::to_string(tile::rows) + "x" + std::to_string(tile::columns) +
           "x" + std::to_string(tile::stages) + (tile::cooperative ? ":cooperative" : ":ping_pong") + ":cluster" +
           std::to_string(tile::cluster) + ":group" + std::to_string(tile::group);
  };
  (to.push_back({name(Tilings{}), First,
                 [args, where](int turn) {
                   namespace device = backend::device;
                   constexpr bool adjusted =
                       First ? device::first_is_adjusted<Layer> : device::second_is_adjusted<Layer>;
                   auto const both = hopper_parts::products(args(turn));
                   device::enqueue_grouped<Problem, adjusted, Tilings, device::weight_order::depth>(
                       where, "product", First ? both.first : both.second, 1 << 16);
                 }}),
   ...);
}

/// All times of one layer and number of tokens, measured when the first is asked for.
template <class Layer>
class tiling_runs {
 public:
  static std::vector<std::string> names() {
    std::vector<named_product> products;
    add_all(products, [](int) { return typename Layer::args{}; }, {});
    std::vector<std::string> result;
    for (auto const& p : products) result.push_back(p.name);
    return result;
  }

  static void report(benchmark::State& state, std::int64_t tokens, std::size_t number) {
    static std::int64_t measured = -1;
    static std::vector<timing> times;
    static double flops[2];
    try {
      if (measured != tokens) {
        if (std::chrono::steady_clock::now() > current_gpu().deadline) throw std::runtime_error("no time left");
        times.clear();
        measured = tokens;
        times = measure(tokens, flops);
      }
      if (times.empty()) throw std::runtime_error("the case failed before");
      for (auto _ : state) state.SetIterationTime(times[number].median);
      bool const first = names()[number].starts_with("in:");
      state.counters["flop/s"] =
          benchmark::Counter(flops[first ? 0 : 1], benchmark::Counter::kIsIterationInvariantRate);
      state.counters["samples"] = times[number].samples;
      state.counters["spread"] = (times[number].most - times[number].least) / times[number].median;
    } catch (std::exception const& e) {
      all_lines_are_right() = false;
      state.SkipWithError(e.what());
    }
  }

 private:
  using element = typename Layer::element;

  template <class Args>
  static void add_all(std::vector<named_product>& to, Args const& args, cuda_context const& where) {
    using first = backend::device::first_product<Layer>;
    using second = backend::device::second_product<Layer>;
    add<Layer, first, true>(to, args, where, for_both{});
    add<Layer, second, false>(to, args, where, for_both{});
    add<Layer, second, false>(to, args, where, for_second{});
  }

  static std::vector<timing> measure(std::int64_t tokens, double (&flops)[2]) {
    cuda_context const where{.stream = current_gpu().stream};
    device_weights<Layer> const weights(0);
    device_memory<element> const output(tokens * Layer::dims.hidden);
    std::vector<device_call<Layer>> calls;
    for (int turn = 0; turn < 2; ++turn) {
      calls.emplace_back(tokens, skew::uniform, static_cast<std::uint32_t>(turn), weights);
      calls.back().plan(output.data(), where.stream);
      Layer::forward(calls.back().args(output.data()), where);  // what the second product reads
    }
    double const product = 2.0 * static_cast<double>(calls[0].rows) * Layer::dims.hidden * Layer::dims.intermediate;
    flops[0] = product * Layer::expert_traits.input_projections();
    flops[1] = product;
    std::vector<named_product> products;
    add_all(
        products, [&](int turn) { return calls[turn].args(output.data()); }, where);
    std::vector<contender> contenders;
    for (auto const& p : products) contenders.push_back({p.name, p.enqueue, false});
    bool const smoke = current_gpu().smoke;
    return take_turns(
        contenders,
        smoke ? schedule{.turns = 2, .seconds = 0.0, .sample_seconds = 0.0, .least_rounds = 1, .most_rounds = 1}
              : schedule{.turns = 2},
        where.stream);
  }
};

template <class Layer>
bool add_tilings(bool small = false) {
  bench_layers().push_back({small, [] { return true; },
                            [] {
                              std::int64_t const tokens = current_gpu().smoke ? 150 : 8192;
                              std::size_t number = 0;
                              for (std::string const& name : tiling_runs<Layer>::names()) {
                                std::string const line = name + "/tilings of " + describe<Layer>() +
                                                         "/tokens:" + std::to_string(tokens) + "/skew:uniform";
                                benchmark::RegisterBenchmark(line.c_str(), tiling_runs<Layer>::report, tokens, number++)
                                    ->UseManualTime()
                                    ->Unit(benchmark::kMillisecond)
                                    ->Iterations(1);
                              }
                            }});
  return true;
}

using small_layer = layer<shape{.hidden = 64, .intermediate = 128, .experts = 8, .top_k = 2}, router::softmax_top_k,
                          capacity::dropless, expert::gated_mlp<silu>, gpu_backend, bfloat16>;
bool const added = add_tilings<small_layer>(true) && add_tilings<presets::mixtral_8x7b<bfloat16, gpu_backend>>() &&
                   add_tilings<presets::olmoe_1b_7b<bfloat16, gpu_backend>>() &&
                   add_tilings<presets::qwen3_30b_a3b<bfloat16, gpu_backend>>() &&
                   add_tilings<presets::gpt_oss_20b<bfloat16, gpu_backend>>();

#endif

}  // namespace

}  // namespace switchyard::bench
