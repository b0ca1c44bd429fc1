#include "../memory.hpp"
#include "../samples.hpp"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <numeric>
#include <string_view>
#include <vector>

// What MoEfication saves: a dense block as a layer of one expert, beside the same block split into experts of which a token visits some, by
// a linear router. In turns, on the same weights; tokens are random, so that every expert is as likely. Weights change between calls, so
// that they come from memory, or stay the same with "warm".
namespace {

namespace sy = switchyard;
namespace bench = switchyard::bench;

struct settings {
  sy::cpu_context where;
  bool warm = false, smoke = false;
};

/// Processor time of one thread, which others on the machine do not change much; with several, time.
double seconds_now(int threads) {
  if (threads == 1) return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// A dense block: its shape, and what an expert of it computes.
template <sy::shape Dims, class Expert, class Element>
struct problem {
  static constexpr std::int64_t hidden = Dims.hidden, units = std::int64_t{Dims.intermediate} * Dims.experts;
  static constexpr std::int64_t matrix = hidden * units, matrices = Expert::traits.gated ? 3 : 2;
  static constexpr std::int64_t bytes = matrices * matrix * static_cast<std::int64_t>(sizeof(Element));
  using dense = sy::layer<sy::shape{Dims.hidden, static_cast<int>(units), 1, 1}, sy::router::switch_top1,
                          sy::capacity::dropless, Expert, sy::backend::cpu, Element>;
  template <int TopK>
  using moefied = sy::layer<sy::shape{Dims.hidden, Dims.intermediate, Dims.experts, TopK}, sy::router::unweighted_top_k,
                            sy::capacity::dropless, Expert, sy::backend::cpu, Element>;

  std::int64_t copies;
  double seconds_per_byte = 0.0;  ///< that the dense block's weights come in for one token
  bench::pages<Element> weights;
  bench::pages<float> router = bench::noise_pages<float>(std::int64_t{Dims.experts} * hidden, 5, 0.05f);

  explicit problem(settings const& of)
      : copies(of.warm ? 1 : std::max<std::int64_t>(2, (std::int64_t{160} << 20) / bytes)),
        weights(bench::noise_pages<Element>(copies * matrices * matrix, 1, 0.05f)) {}

  template <class Layer>
  typename Layer::args args_of(std::int64_t copy, Element const* x, Element* y, std::int64_t tokens,
                               std::span<std::byte> workspace) const {
    typename Layer::args args{};
    Element const* const first = weights.data() + copy * matrices * matrix;
    args.tokens = Layer::rows(x, tokens);
    args.output = Layer::rows(y, tokens);
    args.workspace = workspace;
    args.weights.router.weight = router.data();
    if constexpr (Layer::dims.experts == 1) {
      args.weights.up_proj = Layer::in_proj(first);
      args.weights.down_proj = Layer::out_proj(first + matrix);
      if constexpr (matrices == 3) args.weights.gate_proj = Layer::in_proj(first + 2 * matrix);
    } else {  // as moefication::moefy stores them
      using view = sy::weight_view<Element>;
      args.weights.up_proj = view::transposed(first, Dims.intermediate, hidden);
      args.weights.down_proj = view::transposed(first + matrix, hidden, Dims.intermediate);
      if constexpr (matrices == 3) {
        args.weights.gate_proj = view::transposed(first + 2 * matrix, Dims.intermediate, hidden);
      }
    }
    return args;
  }

  template <int TopK>
  void measure(char const* name, std::int64_t tokens, settings const& of) {
    using sparse = moefied<TopK>;
    auto const x = bench::noise_pages<Element>(tokens * hidden, 3, 1.0f);
    auto const y = bench::zero_pages<Element>(tokens * hidden);
    std::size_t const needed = std::max(dense::workspace_bytes(tokens), sparse::workspace_bytes(tokens));
    auto const workspace = bench::pages<std::byte>(static_cast<std::int64_t>(needed));
    std::span<std::byte> const memory{workspace.data(), needed};
    std::vector<std::int64_t> counts(static_cast<std::size_t>(Dims.experts));
    std::int64_t copy = 0;
    std::vector<double> seconds[2];
    int const rounds = of.smoke ? 1 : tokens <= 8 ? 41 : tokens <= 64 ? 21 : tokens <= 512 ? 7 : 3;
    for (int round = 0; round < rounds; ++round) {
      auto const run = [&]<class Layer>(std::type_identity<Layer>, int which) {
        copy = (copy + 1) % copies;
        auto args = args_of<Layer>(copy, x.data(), y.data(), tokens, memory);
        if (which == 1) args.decisions.counts = counts.data();
        double const begin = seconds_now(of.where.threads);
        Layer::forward(args, of.where);
        seconds[which].push_back(seconds_now(of.where.threads) - begin);
      };
      run(std::type_identity<dense>{}, 0);
      run(std::type_identity<sparse>{}, 1);
    }
    std::int64_t touched = 0;
    for (std::int64_t c : counts) touched += c > 0 ? 1 : 0;
    constexpr double of_router = static_cast<double>(Dims.experts) * hidden;
    double const read = static_cast<double>(bytes) * static_cast<double>(touched) / Dims.experts + 4 * of_router;
    double const products = static_cast<double>(matrices * matrix) * TopK / Dims.experts + of_router;
    double const of_dense = bench::range_of(seconds[0]).median, of_sparse = bench::range_of(seconds[1]).median;
    if (tokens == 1) seconds_per_byte = of_dense / static_cast<double>(bytes);
    double const least =
        std::max(read * seconds_per_byte, of_dense * products / static_cast<double>(matrices * matrix));
    std::printf("%-10s %8s %6lld %4d %10.1f %10.1f %7.2f %7.2f\n", name, sy::element_name<Element>.data(),
                static_cast<long long>(tokens), TopK, of_dense * 1e6, of_sparse * 1e6,
                bench::ratios_of(seconds[0], seconds[1]).median, of_dense / least);
    std::fflush(stdout);
  }

  template <int Fifth, int Half>
  void measure_all(char const* name, settings const& of) {
    for (std::int64_t tokens :
         of.smoke ? std::vector<std::int64_t>{1, 9} : std::vector<std::int64_t>{1, 8, 64, 512, 2048}) {
      measure<Fifth>(name, tokens, of);
      measure<Half>(name, tokens, of);
    }
  }
};

template <class Element>
void measure_element(settings const& of) {
  using plain = sy::expert::mlp<sy::relu>;
  using gated = sy::expert::gated_mlp<sy::silu>;
  problem<sy::shape{768, 32, 96, 1}, plain, Element>(of).template measure_all<19, 48>("T5-base", of);
  if (of.smoke) return;
  problem<sy::shape{1024, 32, 128, 1}, plain, Element>(of).template measure_all<25, 64>("BERT-large", of);
  problem<sy::shape{2048, 64, 128, 1}, gated, Element>(of).template measure_all<25, 64>("Llama-like", of);
}

}  // namespace

int main(int argc, char** argv) {
  settings of;
  int threads = 1;
  bool wrong = false;
  for (int i = 1; i < argc; ++i) {
    std::string_view const word = argv[i];
    if (word == "warm") {
      of.warm = true;
    } else if (word == "--smoke") {
      of.smoke = true;
    } else {
      threads = std::atoi(argv[i]);
      wrong = wrong || threads < 1;
    }
  }
  if (wrong) {
    std::fputs("usage: moefied_bench [threads, default 1] [warm] [--smoke]\n", stderr);
    return 1;
  }
  of.where = sy::cpu::resolved({.threads = threads});
  std::printf(
      "dense blocks and the same ones split into experts, %s, weights %s; us, how many times as fast, and how many "
      "times it would be where "
      "weights are read as fast as those of the dense block for one token, and products made at its rate\n"
      "%-10s %8s %6s %4s %10s %10s %7s %7s\n",
      sy::describe(of.where).c_str(), of.warm ? "in caches" : "in memory", "block", "element", "tokens", "k", "dense",
      "MoEfied", "faster", "limit");
  measure_element<sy::bfloat16>(of);
  measure_element<float>(of);
  return 0;
}
