#include "../memory.hpp"
#include "../samples.hpp"

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <vector>

// What low rank by language costs beside the plain layer of the same matrices, and what its other forms cost: a call for each pair, and
// weights that are restored; and what adapters on experts cost. All are timed in turns, on the same tokens and matrices, on one thread, by the time that the process has had.
namespace {

namespace sy = switchyard;
namespace bench = switchyard::bench;
using sy::bfloat16;

constexpr int languages = 15;
using paths = sy::language_pairs<languages>;

template <sy::shape Dims, class Base, class Element>
using plain_layer = sy::layer<sy::shape{Dims.hidden, Dims.intermediate, 1, 1}, sy::router::precomputed,
                              sy::capacity::dropless, Base, sy::backend::cpu, Element>;
template <sy::shape Dims, class Base, class Element, int Rank, sy::low_rank_form Form>
using low_rank_layer =
    sy::layer<sy::shape{Dims.hidden, Dims.intermediate, paths::count, 1}, sy::router::by_language_pair<languages>,
              sy::capacity::dropless, sy::expert::low_rank<paths, Rank, Base, Form>, sy::backend::cpu, Element>;

template <class Run>
double seconds_of(Run const& run) {
  std::clock_t const begin = std::clock();
  run();
  return static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
}

template <sy::shape Dims, class Base, class Element, int Rank>
void measure(char const* name, sy::cpu_context const& where, int rounds) {
  using plain = plain_layer<Dims, Base, Element>;
  using factored = low_rank_layer<Dims, Base, Element, Rank, sy::low_rank_form::factored>;
  using restored = low_rank_layer<Dims, Base, Element, Rank, sy::low_rank_form::restored>;
  constexpr std::int64_t hidden = Dims.hidden, inner = Dims.intermediate;
  constexpr int matrices = plain::expert_traits.gated ? 3 : 2;
  auto const noise = [](std::int64_t count, int seed) { return bench::noise_pages<Element>(count, seed, 0.02f); };
  auto const weights = noise(matrices * hidden * inner, 1);
  auto const in_tall = noise(2 * paths::entries * inner * Rank, 2),
             in_wide = noise(2 * paths::entries * Rank * hidden, 3);
  auto const out_tall = noise(paths::entries * hidden * Rank, 4), out_wide = noise(paths::entries * Rank * inner, 5);
  auto const matrix = [&](int number) { return static_cast<Element const*>(weights.data()) + number * hidden * inner; };

  for (std::int64_t const tokens : {64, 256, 1024}) {
    auto const x = bench::noise_pages<Element>(tokens * hidden, 6, 1.0f);
    auto const y = bench::zero_pages<Element>(tokens * hidden);
    std::size_t bytes = plain::workspace_bytes(tokens);
    for (std::size_t other : {factored::workspace_bytes(tokens), restored::workspace_bytes(tokens)}) {
      bytes = other > bytes ? other : bytes;
    }
    auto const workspace = bench::zero_pages<std::byte>(static_cast<std::int64_t>(bytes));
    std::vector<std::int32_t> const ids(static_cast<std::size_t>(tokens), 0);
    std::vector<float> const ones(static_cast<std::size_t>(tokens), 1.0f);
    std::span<std::byte> const scratch{workspace.data(), bytes};
    Element const* const rows = x.data();

    typename plain::args of_plain{};
    if constexpr (matrices == 3) of_plain.weights.gate_proj = plain::in_proj(matrix(2));
    of_plain.weights.up_proj = plain::in_proj(matrix(0));
    of_plain.weights.down_proj = plain::out_proj(matrix(1));
    of_plain.tokens = plain::rows(rows, tokens);
    of_plain.output = plain::rows(y.data(), tokens);
    of_plain.workspace = scratch;
    of_plain.inputs = {ids.data(), ones.data()};

    for (int const pairs : {1, 4, 16, 64, 256}) {
      if (pairs > tokens) continue;
      // The tokens of a pair stand together, so that a call for each pair needs no copies; for one call, order is all the same.
      std::vector<std::int32_t> source, target;
      for (std::int64_t t = 0; t < tokens; ++t) {
        int const pair = static_cast<int>(t * pairs / tokens) * 37 % 256;
        source.push_back(pair / 16);
        target.push_back(pair % 16);
      }
      auto const args_of = [&](auto which, std::int64_t first, std::int64_t count) {
        using layer = typename decltype(which)::type;
        typename layer::args args{};
        if constexpr (matrices == 3) {
          args.weights.gate_proj = layer::in_proj(matrix(2), in_tall.data() + paths::entries * inner * Rank,
                                                  in_wide.data() + paths::entries * Rank * hidden);
        }
        args.weights.up_proj = layer::in_proj(matrix(0), in_tall.data(), in_wide.data());
        args.weights.down_proj = layer::out_proj(matrix(1), out_tall.data(), out_wide.data());
        args.tokens = layer::rows(rows + first * hidden, count);
        args.output = layer::rows(y.data() + first * hidden, count);
        args.workspace = scratch;
        args.inputs = {source.data() + first, target.data() + first};
        return args;
      };
      auto const of_factored = args_of(std::type_identity<factored>{}, 0, tokens);
      auto const of_restored = args_of(std::type_identity<restored>{}, 0, tokens);
      std::vector<typename factored::args> of_pairs;
      for (int p = 0; p < pairs; ++p) {
        std::int64_t const begin = (p * tokens + pairs - 1) / pairs, end = ((p + 1) * tokens + pairs - 1) / pairs;
        of_pairs.push_back(args_of(std::type_identity<factored>{}, begin, end - begin));
      }
      std::vector<double> seconds[4];
      for (int round = 0; round <= rounds; ++round) {  // the first is not counted
        double const times[4] = {
            seconds_of([&] { plain::forward(of_plain, where); }),
            seconds_of([&] { factored::forward(of_factored, where); }),
            seconds_of([&] {
              for (auto const& args : of_pairs) factored::forward(args, where);
            }),
            // Some hundred times the others' with many pairs.
            pairs <= 16 && round <= 2 ? seconds_of([&] { restored::forward(of_restored, where); }) : 0.0,
        };
        for (int i = 0; round > 0 && i < 4; ++i) {
          if (times[i] > 0.0) seconds[i].push_back(times[i]);
        }
      }
      double least[4] = {}, median[4] = {};
      for (int i = 0; i < 4; ++i) {
        if (seconds[i].empty()) continue;
        auto const range = bench::range_of(seconds[i]);
        least[i] = range.least;
        median[i] = range.median;
      }
      std::printf("%-10s %4d %6lld %5d %9.2f (%9.2f)", name, Rank, static_cast<long long>(tokens), pairs,
                  least[0] * 1e3, median[0] * 1e3);
      for (int i = 1; i < 4; ++i) {
        if (seconds[i].empty()) {
          std::printf(" %17s", "");
        } else {
          std::printf(" %7.2f (%7.2f)", least[i] / least[0], median[i] / median[0]);
        }
      }
      std::printf("\n");
      std::fflush(stdout);
    }
  }
}

template <sy::shape Dims, class Base, class Element>
void measure_ranks(char const* name, sy::cpu_context const& where, int rounds) {
  measure<Dims, Base, Element, 4>(name, where, rounds);
  measure<Dims, Base, Element, 16>(name, where, rounds);
  measure<Dims, Base, Element, 64>(name, where, rounds);
}

/// Adapters on the experts of OLMoE: what a call takes where no token has one, all have the same, and each has any of eight.
void measure_adapters(sy::cpu_context const& where, int rounds) {
  constexpr int count = 8, rank = 16;
  constexpr sy::shape dims{.hidden = 2048, .intermediate = 1024, .experts = 64, .top_k = 8};
  using base = sy::expert::gated_mlp<sy::silu>;
  using plain =
      sy::layer<dims, sy::router::softmax_top_k_raw, sy::capacity::dropless, base, sy::backend::cpu, bfloat16>;
  using adapted = sy::layer<dims, sy::router::softmax_top_k_raw, sy::capacity::dropless,
                            sy::expert::adapters<count, rank, base>, sy::backend::cpu, bfloat16>;
  constexpr std::int64_t hidden = dims.hidden, inner = dims.intermediate, matrix = dims.experts * hidden * inner;
  constexpr std::int64_t entries = count * dims.experts * rank;
  auto const noise = [](std::int64_t many, std::uint32_t seed) {
    return bench::noise_pages<bfloat16>(many, seed, 0.02f);
  };
  auto const weights = noise(3 * matrix, 1), a = noise(2 * entries * hidden, 2), b = noise(2 * entries * inner, 3);
  auto const down_a = noise(entries * inner, 4), down_b = noise(entries * hidden, 5);
  auto const router = bench::noise_pages<float>(dims.experts * hidden, 6, 0.02f);
  bfloat16 const *const gate = weights.data(), *const up = gate + matrix, *const down = up + matrix;
  std::printf("%-10s %4s %6s %21s %17s %17s %17s\n", "adapters", "rank", "tokens", "plain", "no adapter", "one",
              "eight");
  for (std::int64_t const tokens : {1, 8, 64, 512}) {
    auto const x = bench::noise_pages<bfloat16>(tokens * hidden, 7, 1.0f);
    auto const y = bench::zero_pages<bfloat16>(tokens * hidden);
    std::size_t const bytes = adapted::workspace_bytes(tokens);
    auto const workspace = bench::zero_pages<std::byte>(static_cast<std::int64_t>(bytes));
    plain::args of_plain{};
    adapted::args of_adapted{};
    of_plain.tokens = of_adapted.tokens = plain::rows(static_cast<bfloat16 const*>(x.data()), tokens);
    of_plain.output = of_adapted.output = plain::rows(y.data(), tokens);
    of_plain.workspace = of_adapted.workspace = {workspace.data(), bytes};
    of_plain.weights.router.weight = of_adapted.weights.router.weight = router.data();
    of_plain.weights.gate_proj = plain::in_proj(gate);
    of_plain.weights.up_proj = plain::in_proj(up);
    of_plain.weights.down_proj = plain::out_proj(down);
    of_adapted.weights.gate_proj = adapted::in_proj(gate, a.data(), b.data());
    of_adapted.weights.up_proj = adapted::in_proj(up, a.data() + entries * hidden, b.data() + entries * inner);
    of_adapted.weights.down_proj = adapted::out_proj(down, down_a.data(), down_b.data());
    std::vector<std::int32_t> ids[3];
    for (int t = 0; t < static_cast<int>(tokens); ++t) {
      ids[0].push_back(-1);
      ids[1].push_back(5);
      ids[2].push_back(t * 5 % count);
    }
    std::vector<double> seconds[4];
    for (int round = 0; round <= rounds; ++round) {
      for (int i = 0; i < 4; ++i) {
        if (i > 0) of_adapted.expert_inputs.adapter = ids[i - 1].data();
        double const time =
            seconds_of([&] { i == 0 ? plain::forward(of_plain, where) : adapted::forward(of_adapted, where); });
        if (round > 0) seconds[i].push_back(time);
      }
    }
    auto const alone = bench::range_of(seconds[0]);
    std::printf("%-10s %4d %6lld %9.2f (%9.2f)", "OLMoE bf16", rank, static_cast<long long>(tokens), alone.least * 1e3,
                alone.median * 1e3);
    for (int i = 1; i < 4; ++i) {
      auto const range = bench::range_of(seconds[i]);
      std::printf(" %7.2f (%7.2f)", range.least / alone.least, range.median / alone.median);
    }
    std::printf("\n");
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  int const rounds = argc > 1 ? std::atoi(argv[1]) : 7;
  if (rounds < 1 || argc > 2) {
    std::fputs("usage: low_rank_bench [rounds, default 7]\n", stderr);
    return 1;
  }
  sy::cpu_context const where = sy::cpu::resolved({.threads = 1});
  std::printf(
      "low rank by 15 languages and a shared one, %s; the plain layer's least time in ms (and median), and how many "
      "times that the others take\n%-10s %4s %6s %5s %21s %17s %17s %17s\n",
      sy::describe(where).c_str(), "layer", "rank", "tokens", "pairs", "plain", "low rank", "call per pair",
      "restored");
  constexpr sy::shape olmoe{.hidden = 2048, .intermediate = 1024, .experts = 1, .top_k = 1};
  constexpr sy::shape lms{.hidden = 1024, .intermediate = 4096, .experts = 1, .top_k = 1};
  measure_ranks<olmoe, sy::expert::gated_mlp<sy::silu>, float>("OLMoE f32", where, rounds);
  measure_ranks<lms, sy::expert::mlp<sy::relu>, float>("LMS f32", where, rounds);
  measure_ranks<olmoe, sy::expert::gated_mlp<sy::silu>, bfloat16>("OLMoE bf16", where, rounds);
  measure_ranks<lms, sy::expert::mlp<sy::relu>, bfloat16>("LMS bf16", where, rounds);
  measure_adapters(where, rounds);
  return 0;
}
