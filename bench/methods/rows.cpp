#include "../memory.hpp"
#include "../samples.hpp"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

// How near layers of experts that are rows come to reading those rows: the whole layer, its routing and the sum of rows, beside a bare
// gather of the same rows in the same round. Caches are cold and tokens others each time.
namespace {

namespace sy = switchyard;
namespace bench = switchyard::bench;
using sy::bfloat16;

#if defined(__x86_64__)
#define ROWS_BENCH_TARGETS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define ROWS_BENCH_TARGETS
#endif

/// Reads rows whole, one after the other, and does nothing with them.
ROWS_BENCH_TARGETS std::uint64_t read_rows(bfloat16 const* table, std::int64_t columns, std::int32_t const* ids,
                                           int count) {
  typedef std::uint64_t line __attribute__((vector_size(64)));
  line all{};
  for (int k = 0; k < count; ++k) {
    bfloat16 const* const row = table + ids[k] * columns;
    for (std::int64_t i = 0; i < columns; i += 32) {
      line some;
      std::memcpy(&some, row + i, sizeof some);
      all ^= some;
    }
  }
  return all[0] ^ all[1] ^ all[2] ^ all[3] ^ all[4] ^ all[5] ^ all[6] ^ all[7];
}
void gather(bfloat16 const* table, std::int64_t columns, std::int32_t const* ids, std::int64_t tokens, int top_k,
            sy::cpu_context const& where, std::vector<std::uint64_t>& sink) {
  sy::cpu::parallel_for(where, tokens, [&](std::int64_t token) {
    sink[static_cast<std::size_t>(token)] = read_rows(table, columns, ids + token * top_k, top_k);
  });
}

template <int Keys, int Hidden, int TopK>
void measure(bfloat16 const* table, sy::cpu_context const& where) {
  using layer = sy::layer<sy::shape{Hidden, 1, Keys * Keys, TopK}, sy::router::product_keys<Keys>,
                          sy::capacity::dropless, sy::expert::value_row, sy::backend::cpu, bfloat16>;
  auto const keys = bench::noise_pages<float>(2 * Keys * (Hidden / 2), 1, 1.0f);
  auto const others =
      bench::noise_pages<float>(std::int64_t{16} << 20, 2, 1.0f);  // 64 MiB that drive out everything else
  struct {
    std::int64_t tokens;
    int rounds;
  } const cases[] = {{1, 61}, {8, 41}, {64, 21}, {512, 11}, {2048, 7}};
  for (auto const& of : cases) {
    std::int64_t const tokens = of.tokens;
    int const rounds = of.rounds;
    auto const x = bench::noise_pages<bfloat16>((rounds + 1) * tokens * Hidden, 3, 1.0f);
    auto const y = bench::zero_pages<bfloat16>(tokens * Hidden);
    auto const workspace = bench::zero_pages<std::byte>(static_cast<std::int64_t>(layer::workspace_bytes(tokens)));
    auto const ids = bench::zero_pages<std::int32_t>(tokens * TopK);
    std::vector<std::uint64_t> sink(static_cast<std::size_t>(tokens));
    typename layer::args args;
    args.weights.router.first_keys = keys.data();
    args.weights.router.second_keys = keys.data() + std::int64_t{Keys} * (Hidden / 2);
    args.weights.values = layer::table(table);
    args.output = layer::rows(y.data(), tokens);
    args.workspace = {workspace.data(), static_cast<std::size_t>(workspace.size())};
    std::vector<double> seconds[4];
    for (int round = 0; round <= rounds; ++round) {  // the first is not counted
      args.tokens = layer::rows(static_cast<bfloat16 const*>(x.data()) + round * tokens * Hidden, tokens);
      args.decisions.experts = ids.data();
      layer::forward(args, where);
      args.decisions = {};
      auto const time = [&](int step, auto const& run) {
        double sum = 0.0;
        for (std::int64_t i = 0; i < others.size(); i += 16) sum += static_cast<double>(others.data()[i]);
        gather(table, Hidden, ids.data(), sum == 0.5 ? 1 : 0, TopK, where, sink);
        auto const begin = std::chrono::steady_clock::now();
        run();
        double const passed = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        if (round > 0) seconds[step].push_back(passed);
      };
      time(0, [&] { layer::forward(args, where); });
      time(1, [&] { sy::backend::cpu::route<layer>(args, where); });
      time(2, [&] { sy::backend::cpu::experts<layer>(args, where); });
      time(3, [&] { gather(table, Hidden, ids.data(), tokens, TopK, where, sink); });
    }
    std::printf("%4d %6d %5d %6lld", Keys, Hidden, TopK, static_cast<long long>(tokens));
    double least[4];
    for (int step = 0; step < 4; ++step) {
      auto const range = bench::range_of(seconds[step]);
      least[step] = range.least;
      std::printf(" %9.1f (%9.1f)", range.least * 1e6, range.median * 1e6);
    }
    std::printf(" %7.2f %7.2f\n", least[3] / least[2], least[3] / least[0]);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  int const threads = argc > 1 ? std::atoi(argv[1]) : 2;
  if (threads < 1 || argc > 2) {
    std::fputs("usage: rows_bench [threads, default 2]\n", stderr);
    return 1;
  }
  sy::cpu_context const where = sy::cpu::resolved({.threads = threads});
  std::printf(
      "product keys over bfloat16 rows, %s; us, least (and medians), and the gather's least over those of sum and "
      "layer\n"
      "%4s %6s %5s %6s %21s %21s %21s %21s %7s %7s\n",
      sy::describe(where).c_str(), "keys", "hidden", "top_k", "tokens", "layer", "routing", "sum", "bare gather", "sum",
      "layer");
  auto const table = bench::noise_pages<bfloat16>(std::int64_t{1} << 30, 4, 0.1f);
  measure<256, 512, 32>(table.data(), where);
  measure<256, 512, 128>(table.data(), where);
  measure<256, 1024, 32>(table.data(), where);
  measure<256, 1024, 128>(table.data(), where);
  measure<512, 512, 32>(table.data(), where);
  measure<512, 512, 128>(table.data(), where);
  measure<512, 1024, 32>(table.data(), where);
  measure<512, 1024, 128>(table.data(), where);
  measure<1024, 512, 32>(table.data(), where);
  measure<1024, 512, 128>(table.data(), where);
  measure<1024, 1024, 32>(table.data(), where);
  measure<1024, 1024, 128>(table.data(), where);
  return 0;
}
