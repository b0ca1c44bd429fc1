#include <switchyard/expert/stored_as.hpp>
#include <switchyard/quantised/blocks.hpp>
#include <switchyard/quantised/scaled.hpp>
#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../ceilings.hpp"
#include "../memory.hpp"
#include "../samples.hpp"
#include "stored_layer.hpp"
#include "turns.hpp"

// Quantised experts: ours, our bfloat16 layer, and libraries that read the same bytes. The same tokens and routes, taking turns in one run.
namespace {

namespace sy = switchyard;
namespace q = sy::quantised;
namespace bench = switchyard::bench;
namespace peers = switchyard::bench::peers;

struct options {
  int threads = 2;
  std::string filter;
  sy::instruction_set instructions = sy::instruction_set::automatic;
  int share = 1;  ///< of the usual rounds
  bench::ceilings machine;
  bool agrees = true;
};

std::uint32_t number(std::int64_t index, std::uint32_t seed) {
  return static_cast<std::uint32_t>(static_cast<std::int64_t>(bench::noise(index, seed) * 0x1p31));
}
std::uint16_t half_bits(float value) { return sy::half(value).bits; }

/// Random codes behind scales with which weights are about as large as those of a trained layer.
bench::pages<std::uint8_t> random_blocks(std::int64_t blocks, int bytes, std::uint32_t seed,
                                         std::vector<std::pair<int, float>> const& halves, int exponent_at = -1) {
  bench::pages<std::uint8_t> result(blocks * bytes);
  std::uint8_t* const to = result.data();
  for (std::int64_t i = 0; i + 4 <= blocks * bytes; i += 4) {
    std::uint32_t const random = number(i, seed);
    __builtin_memcpy(to + i, &random, sizeof random);
  }
  for (std::int64_t b = 0; b < blocks; ++b) {
    for (auto const& [at, scale] : halves) {
      std::uint16_t const bits = half_bits(scale * (1.0f + 0.5f * bench::noise(b, seed + 7)));
      __builtin_memcpy(to + b * bytes + at, &bits, sizeof bits);
    }
    if (exponent_at >= 0) to[b * bytes + exponent_at] = static_cast<std::uint8_t>(119 + number(b, seed + 7) % 3);
  }
  return result;
}

template <class Block>
bench::pages<std::uint8_t> blocks_of(std::int64_t count, std::uint32_t seed) {
  if constexpr (std::is_same_v<Block, q::q8_0>) return random_blocks(count, Block::bytes, seed, {{0, 2e-4f}});
  if constexpr (std::is_same_v<Block, q::q4_0>) return random_blocks(count, Block::bytes, seed, {{0, 4e-3f}});
  if constexpr (std::is_same_v<Block, q::q4_K>) {
    return random_blocks(count, Block::bytes, seed, {{0, 1e-4f}, {2, 7e-4f}});
  }
  if constexpr (std::is_same_v<Block, q::q6_K>) return random_blocks(count, Block::bytes, seed, {{208, 2e-5f}});
  if constexpr (std::is_same_v<Block, q::mxfp4_halves>) return random_blocks(count, Block::bytes, seed, {}, 0);
}

/// A shape of a model in several formats.
template <sy::shape Dims>
class comparison {
 public:
  template <class Element>
  using dense = sy::layer<Dims, sy::router::softmax_top_k, sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>,
                          sy::backend::cpu, Element>;
  template <class Format>
  using stored = sy::layer<Dims, sy::router::softmax_top_k, sy::capacity::dropless,
                           sy::expert::stored_as<sy::expert::gated_mlp<sy::silu>, Format>, sy::backend::cpu, float>;

  comparison(std::string name, options& with) : name_(std::move(name)), with_(with) {}

  template <class Block>
  void blocks(std::string const& format, std::vector<std::pair<std::int64_t, int>> const& cases) {
    if (!is_wanted(format, cases)) return;
    using matrix = q::block_matrix<Block>;
    std::int64_t const count = matrix_values / Block::weights, bytes = count * Block::bytes;
    std::vector<bench::pages<std::uint8_t>> memory;
    std::vector<matrices<matrix>> copies;
    peers::stored_problem problem{Dims.hidden, Dims.intermediate, Dims.experts, Dims.top_k, format, bytes, {}};
    for (std::int64_t c = 0; c < copies_for(3 * bytes); ++c) {
      for (int m = 0; m < 3; ++m) memory.push_back(blocks_of<Block>(count, static_cast<std::uint32_t>(3 * c + m)));
      std::uint8_t const* const at[] = {memory[memory.size() - 3].data(), memory[memory.size() - 2].data(),
                                        memory[memory.size() - 1].data()};
      copies.push_back({matrix::packed(at[0], Dims.intermediate, Dims.hidden),
                        matrix::packed(at[1], Dims.intermediate, Dims.hidden),
                        matrix::packed(at[2], Dims.hidden, Dims.intermediate)});
      problem.copies.push_back({at[0], at[1], at[2]});
    }
    std::vector<maker> makers;
#if defined(SWITCHYARD_PEER_GGML)
    for (bool repacked : {false, true}) {
      makers.push_back({peers::ggml_name() + (repacked ? ", repacked" : ""),
                        [&problem, repacked, this] { return whole(peers::ggml(problem, repacked, with_.threads)); }});
    }
#endif
    run<stored<matrix>>(format, copies, 3 * bytes, cases, makers);
  }

  void int8(std::vector<std::pair<std::int64_t, int>> const& cases) {
    if (!is_wanted("int8", cases)) return;
    using matrix = q::int8_channel<float>;
    std::vector<bench::pages<std::uint8_t>> memory;
    std::vector<bench::pages<float>> scales;
    std::vector<matrices<matrix>> copies;
    peers::int8_problem problem{Dims.hidden, Dims.intermediate, Dims.experts, Dims.top_k, {}};
    for (std::int64_t c = 0; c < copies_for(3 * matrix_values); ++c) {
      auto const make = [&](int m, int rows, int columns) {
        auto const seed = static_cast<std::uint32_t>(3 * c + m);
        memory.push_back(random_blocks(matrix_values / 4, 4, seed, {}));
        scales.emplace_back(Dims.experts * rows);
        for (std::int64_t i = 0; i < Dims.experts * rows; ++i) {
          scales.back().data()[i] = 2e-4f * (1.0f + 0.5f * bench::noise(i, seed));
        }
        return matrix{reinterpret_cast<std::int8_t const*>(memory.back().data()), scales.back().data(), rows, columns};
      };
      copies.push_back({make(0, Dims.intermediate, Dims.hidden), make(1, Dims.intermediate, Dims.hidden),
                        make(2, Dims.hidden, Dims.intermediate)});
      auto const as_problem = [](matrix const& m) { return peers::int8_problem::matrix{m.weight, m.scale}; };
      problem.copies.push_back(
          {as_problem(copies.back().gate), as_problem(copies.back().up), as_problem(copies.back().down)});
    }
    std::vector<maker> makers;
#if defined(SWITCHYARD_PEER_ONEDNN)
    makers.push_back({peers::onednn_name() + " int8", [&problem, this] { return loop(problem); }});
#endif
    run<stored<matrix>>("int8", copies, 3 * matrix_values, cases, makers);
  }

 private:
  static constexpr std::int64_t matrix_values = std::int64_t{Dims.experts} * Dims.hidden * Dims.intermediate;
  /// So that weights come from memory.
  static std::int64_t copies_for(std::int64_t bytes) { return std::int64_t{1500} * 1000 * 1000 / bytes + 1; }

  template <class Matrix>
  struct matrices {
    Matrix gate, up, down;
  };
  struct contender {
    std::string name;
    std::function<void(std::int64_t tokens, std::int32_t const* routes)> prepare;
    std::function<void(peers::call<float> const&)> run;  ///< whose copy counts up
    std::size_t copies;
  };
  struct maker {
    std::string name;
    std::function<contender()> make;
  };

  bool is_wanted(std::string const& format, std::vector<std::pair<std::int64_t, int>> const& cases) const {
    return std::any_of(cases.begin(), cases.end(), [&](auto const& c) { return is_line(format, c.first); });
  }
  bool is_line(std::string const& format, std::int64_t tokens) const {
    return line(format, tokens).find(with_.filter) != std::string::npos;
  }
  std::string line(std::string const& format, std::int64_t tokens) const {
    return name_ + "/" + format + "/tokens:" + std::to_string(tokens);
  }

  static contender whole(std::shared_ptr<peers::whole_layer> layer) {
    return {{},
            [layer](std::int64_t tokens, std::int32_t const*) { layer->prepare(tokens); },
            [layer](peers::call<float> const& c) { layer->forward(c); },
            0};
  }
  contender loop(peers::int8_problem const& problem) {
    peers::problem<float> const shape{Dims.hidden, Dims.intermediate, Dims.experts, Dims.top_k, true, {}};
    auto const layer = std::make_shared<peers::loop_over_experts<float>>(
        shape, peers::onednn_int8(problem, with_.threads), with_.threads);
    return {{},
            [layer](std::int64_t tokens, std::int32_t const* routes) { layer->prepare(tokens, routes); },
            [layer](peers::call<float> const& c) { layer->forward(c, peers::threading::one_expert_each); },
            0};
  }

  /// Our layer, as a contender on floats: what it takes besides weights stands here.
  template <class Layer, class Weights>
  contender ours(std::string name, std::vector<Weights> const& copies,
                 sy::quantised_products products = sy::quantised_products::exact) {
    using element = typename Layer::element;
    struct memory {
      bench::pages<std::byte> workspace;
      std::vector<element> input, output;
    };
    auto const mine = std::make_shared<memory>();
    auto const prepare = [mine](std::int64_t tokens, std::int32_t const*) {
      mine->workspace = bench::zero_pages<std::byte>(static_cast<std::int64_t>(Layer::workspace_bytes(tokens)));
      mine->output.resize(static_cast<std::size_t>(tokens * Dims.hidden));
    };
    auto const run = [mine, &copies, products, this](peers::call<float> const& c) {
      auto const& w = copies[c.copy];
      element const* input = nullptr;
      element* output = nullptr;
      if constexpr (std::is_same_v<element, float>) {
        input = c.input;
        output = c.output;
      } else {
        input = narrow_input_.data();
        output = mine->output.data();
      }
      std::size_t const bytes = static_cast<std::size_t>(mine->workspace.size());
      Layer::forward(
          {.tokens = Layer::rows(input, c.tokens),
           .weights = {.router = {.weight = router_.data()}, .gate_proj = w.gate, .up_proj = w.up, .down_proj = w.down},
           .output = Layer::rows(output, c.tokens),
           .workspace = {mine->workspace.data(), bytes},
           .decisions = {.experts = const_cast<std::int32_t*>(c.routes), .weights = const_cast<float*>(c.weights)}},
          {.threads = with_.threads, .instructions = with_.instructions, .quantised = products});
    };
    return {std::move(name), prepare, run, copies.size()};
  }

  template <class Layer, class Matrix>
  void run(std::string const& format, std::vector<matrices<Matrix>> const& copies, std::int64_t bytes,
           std::vector<std::pair<std::int64_t, int>> const& cases, std::vector<maker> const& makers) {
    start();
    std::vector<contender> contenders;
    contenders.push_back(ours<Layer>("switchyard " + format, copies));
    contenders.push_back(ours<dense<sy::bfloat16>>("switchyard bfloat16", dense_));
    if constexpr (sy::cpu::integer_codes<Matrix>::exist) {
      contenders.push_back(ours<Layer>("switchyard, tokens in 8 bits", copies, sy::quantised_products::tokens_in_int8));
    }
    std::vector<std::string> left_out;
    for (maker const& m : makers) {
      try {
        contenders.push_back(m.make());
        contenders.back().name = m.name;
        contenders.back().copies = copies.size();
      } catch (std::exception const& e) {
        left_out.push_back(m.name + " left out: " + e.what());
      }
    }
    for (auto const& [tokens, rounds] : cases) {
      if (is_line(format, tokens)) at(format, tokens, std::max(rounds / with_.share, 3), bytes, contenders);
    }
    for (std::string const& one : left_out) std::printf("  %s\n", one.c_str());
    std::fflush(stdout);
  }

  void at(std::string const& format, std::int64_t tokens, int rounds, std::int64_t bytes,
          std::vector<contender>& contenders) {
    constexpr std::uint32_t sets = 8;
    struct routed {
      bench::pages<float> input;
      std::vector<std::int32_t> routes;
      std::vector<float> weights;
    };
    std::vector<routed> data;
    double used = 0.0;
    std::vector<float> output(static_cast<std::size_t>(tokens * Dims.hidden)), expected;
    auto const call_of = [&](std::size_t set, std::size_t copy) {
      routed& r = data[set % data.size()];
      return peers::call<float>{tokens, r.input.data(), r.routes.data(), r.weights.data(), output.data(), copy};
    };
    for (std::uint32_t s = 0; s < sets; ++s) {
      routed& r = data.emplace_back(routed{bench::make_tokens<float>(Dims, tokens, bench::skew::uniform, s),
                                           std::vector<std::int32_t>(static_cast<std::size_t>(tokens * Dims.top_k)),
                                           std::vector<float>(static_cast<std::size_t>(tokens * Dims.top_k))});
      contenders[0].prepare(tokens, nullptr);
      contenders[0].run(call_of(s, 0));
      std::vector<bool> chosen(Dims.experts);
      for (std::int32_t e : r.routes) chosen[static_cast<std::size_t>(e)] = true;
      used += static_cast<double>(std::count(chosen.begin(), chosen.end(), true)) / sets;
      if (s == 0) expected = output;
    }
    narrow_input_.resize(output.size());
    for (std::size_t i = 0; i < output.size(); ++i) narrow_input_[i] = sy::bfloat16(data[0].input.data()[i]);

    double error = 0.0;
    std::vector<std::function<void()>> calls;
    for (std::size_t c = 0; c < contenders.size(); ++c) {
      for (routed const& r : data) contenders[c].prepare(tokens, r.routes.data());
      contenders[c].run(call_of(0, 0));
      if (c != 1) error = std::max(error, distance(output, expected));  // others read the same bytes
      calls.push_back([&, c, turn = std::size_t{0}]() mutable {
        // Narrow tokens are those of the first set; which experts they choose is all the same.
        contenders[c].run(call_of(c == 1 ? 0 : turn, turn % contenders[c].copies));
        ++turn;
      });
    }
    std::vector<peers::call_times> const times = peers::in_turns(calls, rounds, with_.threads);

    double const flops = 2.0 * 3.0 * Dims.hidden * Dims.intermediate * static_cast<double>(tokens * Dims.top_k);
    double const by_bytes = static_cast<double>(bytes) / Dims.experts * used / with_.machine.bytes;
    double const by_flops = flops / with_.machine.flops, limit = std::max(by_bytes, by_flops);
    std::printf("\n%s   limit %.2f ms (%s)\n", line(format, tokens).c_str(), limit * 1e3,
                by_flops > by_bytes ? "float arithmetic" : "memory");
    for (std::size_t c = 0; c < times.size(); ++c) {
      bench::samples_range const time = bench::range_of(times[c].wall);
      std::printf("  %-32s %9.2f ms (%.2f - %.2f) %8.2f x limit", contenders[c].name.c_str(), time.median * 1e3,
                  time.least * 1e3, time.most * 1e3, time.median / limit);
      if (c > 0) {
        bench::samples_range const faster = bench::ratios_of(times[c].wall, times[0].wall);
        std::printf(" %7.2fx (%.2f - %.2f) %7.2fx cpu", faster.median, faster.least, faster.most,
                    bench::ratios_of(times[c].cpu, times[0].cpu).median);
      }
      std::printf("\n");
    }
    std::fflush(stdout);
    constexpr double allowed = 3e-2;  // the peers round tokens to 8 bits
    if (!(error <= allowed)) std::printf("  the outputs differ by %.1e\n", error);
    with_.agrees = with_.agrees && error <= allowed;
  }

  static double distance(std::vector<float> const& a, std::vector<float> const& b) {
    double difference = 0.0, length = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      difference += std::pow(double{a[i]} - double{b[i]}, 2);
      length += std::pow(double{b[i]}, 2);
    }
    return std::sqrt(difference / length);
  }

  /// What all formats are compared with: the router's weights, and two copies of a bfloat16 layer's.
  void start() {
    if (!dense_.empty()) return;
    router_.assign(static_cast<std::size_t>(Dims.experts) * Dims.hidden, 0.0f);
    for (std::size_t e = 0; e < static_cast<std::size_t>(Dims.experts); ++e) router_[e * Dims.hidden + e] = 1.0f;
    using layer = dense<sy::bfloat16>;
    for (std::uint32_t c = 0; c < 2; ++c) {
      for (std::uint32_t m = 0; m < 3; ++m) {
        dense_memory_.push_back(bench::noise_pages<sy::bfloat16>(matrix_values, 3 * c + m, 0.02f));
      }
      dense_.push_back({layer::in_proj(dense_memory_[3 * c].data()), layer::in_proj(dense_memory_[3 * c + 1].data()),
                        layer::out_proj(dense_memory_[3 * c + 2].data())});
    }
  }

  struct dense_matrices {
    decltype(dense<sy::bfloat16>::in_proj(static_cast<sy::bfloat16 const*>(nullptr))) gate, up;
    decltype(dense<sy::bfloat16>::out_proj(static_cast<sy::bfloat16 const*>(nullptr))) down;
  };
  std::string name_;
  options& with_;
  std::vector<float> router_;
  std::vector<bench::pages<sy::bfloat16>> dense_memory_;
  std::vector<dense_matrices> dense_;
  std::vector<sy::bfloat16> narrow_input_;
};

template <class Comparison>
void compare(Comparison& of, std::vector<std::pair<std::int64_t, int>> const& cases) {
  of.template blocks<q::q8_0>("q8_0", cases);
  of.template blocks<q::q4_0>("q4_0", cases);
  of.template blocks<q::q4_K>("q4_K", cases);
  of.template blocks<q::q6_K>("q6_K", cases);
  of.template blocks<q::mxfp4_halves>("mxfp4", cases);
  of.int8(cases);
}

}  // namespace

int main(int argc, char** argv) {
  options with;
  if (argc > 1) with.threads = std::atoi(argv[1]);
  if (argc > 2) with.filter = argv[2];
  bool known = argc < 4;
  for (auto set : {sy::instruction_set::automatic, sy::instruction_set::portable, sy::instruction_set::avx2,
                   sy::instruction_set::avx512}) {
    if (argc >= 4 && argv[3] == sy::name_of(set)) known = true, with.instructions = set;
  }
  if (argc > 4) with.share = std::atoi(argv[4]);
  if (with.threads < 1 || with.share < 1 || argc > 5 || !known) {
    std::fputs(
        "usage: quantised_peers_bench [threads, default 2] [only cases whose names contain this, such as olmoe/q4_K or "
        "tokens:64] [instructions: automatic, portable, avx2, avx512] [share of the usual rounds: 3 for a third]\n",
        stderr);
    return 1;
  }
  with.machine = bench::measure_ceilings(with.threads, 4.0);
  std::printf("%d threads, %s; ceilings: %.0f GFLOP/s of float, %.1f GB/s read\n", with.threads,
              std::string(sy::name_of(sy::cpu::resolved({.instructions = with.instructions}).instructions)).c_str(),
              with.machine.flops / 1e9, with.machine.bytes / 1e9);
  {
    comparison<sy::presets::olmoe_1b_7b<>::dims> olmoe("olmoe", with);
    compare(olmoe, {{1, 41}, {8, 25}, {64, 15}, {512, 7}});
  }
  comparison<sy::presets::qwen3_30b_a3b<>::dims> qwen("qwen3", with);
  compare(qwen, {{1, 41}, {8, 25}, {64, 15}, {512, 7}});
  std::printf(
      "\nMedians of calls in turn, on cold weights, and in brackets the least and the most. limit: the least time for "
      "the experts' products, by float arithmetic or by reading the stored weights of the experts chosen. Last "
      "columns: "
      "our speed over the other's, by wall time and by what the process computed; above 1 we are faster. ggml and "
      "oneDNN "
      "round tokens to 8 bits; they get the routes, we route.\n");
  if (!with.agrees) std::printf("Outputs differ.\n");
  return with.agrees ? 0 : 1;
}
