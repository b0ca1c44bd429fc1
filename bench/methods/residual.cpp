#include "../memory.hpp"
#include "../samples.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>

// What experts of a centre and pruned residuals take beside uncompressed ones: both layers in turns, on the same tokens and routes, other
// ones in each round, with weights that come from memory. A quarter of the residuals is kept.
namespace {

namespace sy = switchyard;
namespace bench = switchyard::bench;
using sy::bfloat16;

using base = sy::expert::gated_mlp<sy::silu>;
template <sy::shape Dims, class Expert>
using layer = sy::layer<Dims, sy::router::precomputed, sy::capacity::dropless, Expert, sy::backend::cpu, bfloat16>;

/// Masks with a quarter of the bits, and values of noise.
class noise_residuals {
 public:
  noise_residuals(int experts, int rows, int columns, std::uint32_t seed) : experts_(experts) {
    change_.rows = rows;
    change_.columns = columns;
    std::int64_t const words = change_.words_of_row(), blocks = change_.blocks_of_row();
    std::int64_t const lines = std::int64_t{experts} * rows;
    masks_ = bench::pages<std::uint32_t>(lines * words);
    block_starts_ = bench::pages<std::uint32_t>(lines * blocks);
    std::uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    auto const random = [&] {  // splitmix64
      std::uint64_t z = state += 0x9e3779b97f4a7c15u;
      z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
      z = (z ^ z >> 27) * 0x94d049bb133111ebu;
      return z ^ z >> 31;
    };
    std::int64_t count = 0;
    for (std::int64_t line = 0; line < lines; ++line) {
      if (line % rows == 0) first_values_.push_back(count);
      for (std::int64_t w = 0; w < words; ++w) {
        if (w % 16 == 0) {
          block_starts_.data()[line * blocks + w / 16] = static_cast<std::uint32_t>(count - first_values_.back());
        }
        std::uint64_t const both = random();
        std::uint32_t mask = static_cast<std::uint32_t>(both) & static_cast<std::uint32_t>(both >> 32);
        if (w + 1 == words && columns % 32 != 0) mask &= (1u << columns % 32) - 1;
        masks_.data()[line * words + w] = mask;
        count += sy::count_ones(mask);
      }
    }
    first_values_.push_back(count);
    values_ = bench::noise_pages<bfloat16>(count + sy::masked_change<bfloat16>::padding, seed, 0.01f);
    change_.masks = masks_.data();
    change_.values = values_.data();
    change_.first_values = first_values_.data();
    change_.block_starts = block_starts_.data();
    change_.value_count = count;
  }
  sy::masked_change<bfloat16> const& change() const { return change_; }
  double bytes_of_expert() const {
    return (4.0 * static_cast<double>(masks_.size() + block_starts_.size()) +
            2.0 * static_cast<double>(values_.size())) /
           experts_;
  }

 private:
  int experts_;
  sy::masked_change<bfloat16> change_;
  bench::pages<std::uint32_t> masks_, block_starts_;
  std::vector<std::int64_t> first_values_;
  bench::pages<bfloat16> values_;
};

struct times {
  double wall, processor;
};
template <class Run>
times times_of(Run const& run) {
  auto const begin = std::chrono::steady_clock::now();
  std::clock_t const clock = std::clock();
  run();
  return {std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(),
          static_cast<double>(std::clock() - clock) / CLOCKS_PER_SEC};
}

/// Routes of some tokens: different experts for each, all equally likely.
std::vector<std::int32_t> uniform_routes(std::int64_t tokens, sy::shape dims, std::uint32_t seed) {
  std::vector<std::int32_t> ids;
  std::uint32_t state = seed * 2654435761u + 12345u;
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (int k = 0; k < dims.top_k;) {
      state = state * 1664525u + 1013904223u;
      auto const id = static_cast<std::int32_t>((state >> 8) % static_cast<std::uint32_t>(dims.experts));
      if (std::find(ids.end() - k, ids.end(), id) != ids.end()) continue;
      ids.push_back(id);
      ++k;
    }
  }
  return ids;
}

template <sy::shape Dims>
void measure(char const* name, std::vector<std::int64_t> const& all_tokens, int threads, int rounds) {
  using dense = layer<Dims, base>;
  using compressed = layer<Dims, sy::expert::residual<base>>;
  constexpr std::int64_t hidden = Dims.hidden, inner = Dims.intermediate, matrix = hidden * inner;
  sy::cpu_context const where = sy::cpu::resolved({.threads = threads});
  auto const weights = bench::noise_pages<bfloat16>(3 * Dims.experts * matrix, 1, 0.02f);
  auto const centre = bench::noise_pages<bfloat16>(3 * matrix, 2, 0.02f);
  noise_residuals const gate(Dims.experts, Dims.intermediate, Dims.hidden, 3),
      up(Dims.experts, Dims.intermediate, Dims.hidden, 4), down(Dims.experts, Dims.hidden, Dims.intermediate, 5);
  bfloat16 const *const w = weights.data(), *const c = centre.data();
  typename dense::args of_dense{};
  of_dense.weights.gate_proj = dense::in_proj(w);
  of_dense.weights.up_proj = dense::in_proj(w + Dims.experts * matrix);
  of_dense.weights.down_proj = dense::out_proj(w + 2 * Dims.experts * matrix);
  typename compressed::args of_compressed{};
  of_compressed.weights.gate_proj = compressed::in_proj(c, gate.change());
  of_compressed.weights.up_proj = compressed::in_proj(c + matrix, up.change());
  of_compressed.weights.down_proj = compressed::out_proj(c + 2 * matrix, down.change());
  double const centre_bytes = 6.0 * matrix;
  double const residual_bytes = gate.bytes_of_expert() + up.bytes_of_expert() + down.bytes_of_expert();

  for (std::int64_t const tokens : all_tokens) {
    auto const x = bench::noise_pages<bfloat16>(tokens * hidden, 6, 1.0f);
    auto const y = bench::zero_pages<bfloat16>(tokens * hidden);
    std::size_t const bytes = std::max(dense::workspace_bytes(tokens), compressed::workspace_bytes(tokens));
    auto const workspace = bench::zero_pages<std::byte>(static_cast<std::int64_t>(bytes));
    std::vector<float> const ones(static_cast<std::size_t>(tokens * Dims.top_k), 1.0f / Dims.top_k);
    of_dense.tokens = of_compressed.tokens = {x.data(), tokens, hidden};
    of_dense.output = of_compressed.output = {y.data(), tokens, hidden};
    of_dense.workspace = of_compressed.workspace = {workspace.data(), bytes};
    std::vector<double> wall[2], processor[2], ratio_of_bytes;
    double least_bytes = 0.0;
    for (int round = 0; round <= rounds; ++round) {  // the first is not counted
      std::vector<std::int32_t> const ids = uniform_routes(tokens, Dims, static_cast<std::uint32_t>(round));
      std::vector<std::int32_t> used = ids;
      std::sort(used.begin(), used.end());
      auto const experts = static_cast<double>(std::unique(used.begin(), used.end()) - used.begin());
      of_dense.inputs = of_compressed.inputs = {ids.data(), ones.data()};
      times const both[2] = {times_of([&] { dense::forward(of_dense, where); }),
                             times_of([&] { compressed::forward(of_compressed, where); })};
      if (round == 0) continue;
      for (int i = 0; i < 2; ++i) {
        wall[i].push_back(both[i].wall);
        processor[i].push_back(both[i].processor);
      }
      least_bytes = centre_bytes + experts * residual_bytes;
      ratio_of_bytes.push_back(experts * centre_bytes / least_bytes);
    }
    double const of_bytes = bench::range_of(ratio_of_bytes).median;
    double const speed = bench::range_of(wall[0]).least / bench::range_of(wall[1]).least,
                 by_processor = bench::ratios_of(processor[0], processor[1]).median;
    std::printf("%-8s %6lld %9.2f %9.2f %7.2f (%5.2f) %9.1f %7.2f %7.2f\n", name, static_cast<long long>(tokens),
                bench::range_of(wall[0]).least * 1e3, bench::range_of(wall[1]).least * 1e3, speed, by_processor,
                least_bytes * 1e-6, of_bytes, speed / of_bytes);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  bool const tiny = argc == 2 && std::strcmp(argv[1], "--smoke") == 0;
  int const threads = argc > 1 && !tiny ? std::atoi(argv[1]) : 2, rounds = argc > 2 ? std::atoi(argv[2]) : 9;
  bool const only_olmoe = argc == 4 && std::strcmp(argv[3], "OLMoE") == 0,
             only_mixtral = argc == 4 && std::strcmp(argv[3], "Mixtral") == 0;
  if (threads < 1 || rounds < 1 || argc > 4 || (argc == 4 && !only_olmoe && !only_mixtral)) {
    std::fputs(
        "usage: residual_bench [--smoke], or residual_bench [threads, default 2] [rounds, default 9] [OLMoE or "
        "Mixtral]\n",
        stderr);
    return 1;
  }
  std::printf(
      "residuals, a quarter kept, bfloat16, %s; least ms, how many times as fast as uncompressed by the time on the "
      "clock "
      "(and by processor time, medians of rounds), MB that the layer reads, how many times as many that are "
      "uncompressed, "
      "and the share of that reached\n%-8s %6s %9s %9s %15s %9s %7s %7s\n",
      sy::describe(sy::cpu_context{.threads = threads}).c_str(), "layer", "tokens", "dense", "residual", "x as fast",
      "MB", "x bytes", "share");
  if (tiny) {
    measure<sy::shape{.hidden = 64, .intermediate = 32, .experts = 4, .top_k = 2}>("tiny", {1, 40}, threads, 1);
    return 0;
  }
  std::vector<std::int64_t> const tokens{1, 2, 4, 8, 64, 512, 2048};
  constexpr sy::shape olmoe{.hidden = 2048, .intermediate = 1024, .experts = 64, .top_k = 8};
  constexpr sy::shape mixtral{.hidden = 4096, .intermediate = 14336, .experts = 8, .top_k = 2};
  if (!only_mixtral) measure<olmoe>("OLMoE", tokens, threads, rounds);
  if (!only_olmoe) measure<mixtral>("Mixtral", tokens, threads, rounds);
  return 0;
}
