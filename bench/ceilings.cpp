#include "ceilings.hpp"

#include "memory.hpp"

#include <switchyard/backend/cpu/amx.hpp>
#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/tile.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

namespace switchyard::bench {

namespace {

namespace portable {
#define SWITCHYARD_CEILING_TARGET
#define SWITCHYARD_CEILING_BYTES 16
#include "ceilings.inl"
#undef SWITCHYARD_CEILING_TARGET
#undef SWITCHYARD_CEILING_BYTES
}  // namespace portable

#if defined(__x86_64__)
namespace avx2 {
#define SWITCHYARD_CEILING_TARGET __attribute__((target("avx2,fma")))
#define SWITCHYARD_CEILING_BYTES 32
#include "ceilings.inl"
#undef SWITCHYARD_CEILING_TARGET
#undef SWITCHYARD_CEILING_BYTES
}  // namespace avx2

namespace avx512 {
#define SWITCHYARD_CEILING_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define SWITCHYARD_CEILING_BYTES 64
#include "ceilings.inl"
#undef SWITCHYARD_CEILING_TARGET
#undef SWITCHYARD_CEILING_BYTES
}  // namespace avx512
#endif

double multiply_add(std::int64_t rounds, float* sink) {
#if defined(__x86_64__)
  if (best_instruction_set() >= instruction_set::avx512) return avx512::multiply_add(rounds, sink);
  if (best_instruction_set() == instruction_set::avx2) return avx2::multiply_add(rounds, sink);
#endif
  return portable::multiply_add(rounds, sink);
}

std::int64_t read(std::byte const* from, std::int64_t bytes) {
#if defined(__x86_64__)
  if (best_instruction_set() >= instruction_set::avx512) return avx512::read(from, bytes);
  if (best_instruction_set() == instruction_set::avx2) return avx2::read(from, bytes);
#endif
  return portable::read(from, bytes);
}

#if defined(__x86_64__)
/// Products of tiles in registers, into four sums in turn. Returns the flops done.
double multiply_tiles(std::int64_t rounds) {
  cpu::amx::tiles t;
  t.begin();
  t.zero<0>(), t.zero<1>(), t.zero<2>(), t.zero<3>(), t.zero<4>(), t.zero<5>(), t.zero<6>(), t.zero<7>();
  for (std::int64_t i = 0; i < rounds; ++i) {
    t.multiply<0, 4, 6>();
    t.multiply<1, 4, 7>();
    t.multiply<2, 5, 6>();
    t.multiply<3, 5, 7>();
  }
  t.end();
  return 4.0 * 2.0 * 16 * 16 * 32 * static_cast<double>(rounds);
}
#endif

/// The rate of all threads together. Each works through short windows for so many seconds; the sum of the threads'
/// median windows counts, so that a machine with other work is not measured by its interruptions.
/// `work(thread, window)` returns what it did.
template <class Work>
double rate(cpu_context const& where, double seconds, Work const& work) {
  using clock = std::chrono::steady_clock;
  std::vector<double> medians(where.threads);
  cpu::parallel_for(where, where.threads, [&](std::int64_t thread) {
    std::vector<double> rates;
    auto const start = clock::now();
    for (auto begin = start; std::chrono::duration<double>(begin - start).count() < seconds;) {
      double const done = work(thread, static_cast<std::int64_t>(rates.size()));
      auto const end = clock::now();
      rates.push_back(done / std::chrono::duration<double>(end - begin).count());
      begin = end;
    }
    std::nth_element(rates.begin(), rates.begin() + rates.size() / 2, rates.end());
    medians[thread] = rates[rates.size() / 2];
  });
  return std::accumulate(medians.begin(), medians.end(), 0.0);
}

}  // namespace

ceilings measure_ceilings(int threads, double seconds) {
  cpu_context const where = cpu::resolved({.threads = threads});
  std::atomic<std::int64_t> sink{0};  // what is computed has to go somewhere
  ceilings result;
  result.flops = rate(where, seconds / 3, [&](std::int64_t, std::int64_t) {
    float value;
    double const flops = multiply_add(1 << 17, &value);
    sink += static_cast<std::int64_t>(value);
    return flops;
  });

#if defined(__x86_64__)
  if (best_instruction_set() == instruction_set::amx) {
    result.tile_flops = rate(where, seconds / 3, [](std::int64_t, std::int64_t) { return multiply_tiles(1 << 13); });
  }
#endif

  constexpr std::int64_t piece = 4 << 20;
  std::int64_t const pieces_each = std::max(512 / threads, 1);
  pages<std::byte> const memory = zero_pages<std::byte>(piece * pieces_each * threads);
  result.bytes = rate(where, seconds / 3, [&](std::int64_t thread, std::int64_t window) {
    sink += read(memory.data() + (thread * pieces_each + window % pieces_each) * piece, piece);
    return static_cast<double>(piece);
  });
  return result;
}

}  // namespace switchyard::bench
