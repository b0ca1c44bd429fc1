#include <switchyard/core/counter_random.hpp>
#include <switchyard/offload/predict.hpp>
#include <switchyard/offload/simulate.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "catch.hpp"
#include "support/said.hpp"

namespace sy = switchyard;
namespace offload = switchyard::offload;
using Catch::Matchers::ContainsSubstring;

namespace {

/// Calls of the layers in turn, each of some random experts.
offload::trace random_trace(int layers, int experts, int calls, std::uint64_t seed, float share) {
  sy::counter_random const draw{seed};
  offload::trace result(layers, experts);
  std::vector<std::int64_t> counts(static_cast<std::size_t>(experts));
  std::uint64_t number = 0;
  for (int i = 0; i < calls; ++i) {
    for (std::int64_t& c : counts) c = draw.uniform(number++) < share ? 1 : 0;
    result.record(i % layers, counts);
  }
  return result;
}

/// The least loads of all ways there are: a call's pieces in any order, each read into the place of any other piece.
int least_loads(offload::trace const& of, int places) {
  int const pieces = of.layers() * of.experts();
  int const far = 1 << 20;
  std::vector<int> cost(std::size_t{1} << pieces, far);  // by the set of pieces that are resident
  cost[0] = 0;
  for (std::int64_t i = 0; i < of.calls(); ++i) {
    offload::traced_call const call = of[i];
    unsigned all = 0;
    for (std::int32_t e : call.experts) all |= 1u << (call.layer * of.experts() + e);
    std::vector<std::vector<int>> with(all + 1, std::vector<int>(cost.size(), far));  // by what is still needed
    with[all] = cost;
    for (unsigned rest = all; rest > 0; --rest) {
      if ((rest & ~all) != 0) continue;
      for (unsigned resident = 0; resident < cost.size(); ++resident) {
        int const so_far = with[rest][resident];
        if (so_far == far) continue;
        for (int p = 0; p < pieces; ++p) {
          unsigned const piece = 1u << p;
          if ((rest & piece) == 0) continue;
          auto const reach = [&](unsigned then, int loads) {
            int& known = with[rest & ~piece][then];
            known = std::min(known, so_far + loads);
          };
          if ((resident & piece) != 0) {
            reach(resident, 0);
          } else if (std::popcount(resident) < places) {
            reach(resident | piece, 1);
          } else {
            for (int out = 0; out < pieces; ++out) {
              if ((resident >> out & 1) != 0) reach((resident & ~(1u << out)) | piece, 1);
            }
          }
        }
      }
    }
    cost = with[0];
  }
  return *std::min_element(cost.begin(), cost.end());
}

/// A trace of one layer of four experts.
offload::trace calls_of(std::vector<std::vector<std::int64_t>> const& counts) {
  offload::trace result(1, 4);
  for (auto const& c : counts) result.record(0, c);
  return result;
}

template <class Policy>
offload::simulated_run run(offload::trace const& of, int places, std::int64_t ahead,
                           offload::simulated_machine const& machine = {}) {
  offload::residency<Policy> known(of.layers(), of.experts(), places, 1000);
  if (ahead < 0) return offload::simulate(of, known, machine);
  offload::oracle all(of, ahead);
  return offload::simulate(of, known, machine, [&](auto& cache, std::int64_t call) { all.tell(cache, call); });
}

}  // namespace

TEST_CASE("no way of reading takes fewer loads than Belady's rule", "[offload]") {
  for (std::uint64_t seed = 0; seed < 24; ++seed) {
    offload::trace const of = random_trace(2, 3, 8, seed, 0.5f);
    for (int places : {1, 2, 3, 4}) {
      INFO("seed " << seed << ", places " << places);
      CHECK(offload::belady_loads(of, places) == least_loads(of, places));
    }
  }
  // The first two calls read three pieces, the third one, and the last none.
  offload::trace const four = calls_of({{1, 1, 0, 0}, {1, 0, 1, 0}, {0, 0, 0, 1}, {1, 0, 0, 1}});
  CHECK(offload::belady_loads(four, 2) == 4);
  CHECK(offload::belady_loads(four, 2, 2) == 1);
  CHECK_THAT(support::said([] { offload::belady_loads(offload::trace(1, 1), 0); }),
             ContainsSubstring("1 or more, got 0"));
}

/// Gives up what is needed last, and nothing out of turn.
struct furthest_first {
  static constexpr std::string_view name = "furthest_first";
  static constexpr bool drops_unneeded = false;
  static constexpr int out_of_turn = 0;
  static bool goes_before(offload::resident const& a, offload::resident const& b) {
    return offload::lru_with_lookahead::goes_before(a, b);
  }
};

TEST_CASE("policies that know all calls read hardly more than Belady's rule", "[offload]") {
  for (std::uint64_t seed = 0; seed < 6; ++seed) {
    offload::trace const of = random_trace(3, 8, 120, seed, 0.25f);
    for (int places : {1, 3, 6, 12, 24}) {
      INFO("seed " << seed << ", places " << places);
      double const least = static_cast<double>(offload::belady_loads(of, places));
      auto const in_turn = static_cast<double>(run<furthest_first>(of, places, 1000).loads);
      auto const out_of_turn = static_cast<double>(run<offload::lru_with_lookahead>(of, places, 1000).loads);
      CHECK(in_turn >= least);
      CHECK(out_of_turn >= least);
      CHECK(in_turn <= 1.05 * least);
      CHECK(out_of_turn <= (places < 24 ? 1.20 : 1.0) * least);
      CHECK(static_cast<double>(run<offload::lru>(of, places, -1).loads) >= least);
    }
  }
}

TEST_CASE("reading does not wait for the place that is in use", "[offload]") {
  // All experts in turn: what was just used is needed last, and by Belady's rule everything comes through its place.
  offload::trace of(8, 4);
  std::vector<std::int64_t> const all(4, 1);
  for (int i = 0; i < 80; ++i) of.record(i % 8, all);
  offload::simulated_machine const machine{.piece_bytes = 1, .bytes_per_second = 1.0, .seconds_per_row = 1.0};
  offload::simulated_run const in_turn = run<furthest_first>(of, 16, 1000, machine);
  offload::simulated_run const out_of_turn = run<offload::lru_with_lookahead>(of, 16, 1000, machine);
  CHECK(in_turn.seconds > 1.3 * in_turn.resident);
  CHECK(out_of_turn.seconds < 1.1 * out_of_turn.resident);
  CHECK(static_cast<double>(out_of_turn.loads) < 1.15 * static_cast<double>(in_turn.loads));
}

TEST_CASE("the published policy reads what it gave up", "[offload]") {
  // Groups that need {0, 2}, {2, 3}, {1}, and {1} again.
  offload::trace const of = calls_of({{1, 0, 1, 0}, {0, 0, 1, 1}, {0, 1, 0, 0}, {0, 1, 0, 0}, {1, 0, 1, 0}});
  CHECK(run<offload::exact>(of, 4, -1).loads == 6);
  CHECK(run<offload::lru>(of, 4, -1).loads == 4);
}

TEST_CASE("a simulated machine reads while it computes, and counts what calls wait", "[offload]") {
  // One expert of one row, then another of two: a second for each read, and for each row.
  offload::trace const of = calls_of({{1, 0, 0, 0}, {0, 2, 0, 0}});
  offload::simulated_machine const machine{.piece_bytes = 10, .bytes_per_second = 10.0, .seconds_per_row = 1.0};
  offload::simulated_run const on_demand = run<offload::lru>(of, 2, -1, machine);
  CHECK(on_demand.seconds == 5.0);
  CHECK(on_demand.waiting == 2.0);
  CHECK(on_demand.hits == 0);
  CHECK(on_demand.needed == 2);
  CHECK(on_demand.bytes == 20);
  CHECK(on_demand.resident == 3.0);
  offload::simulated_run const ahead = run<offload::lru>(of, 2, 1, machine);
  CHECK(ahead.seconds == 4.0);
  CHECK(ahead.waiting == 1.0);
  CHECK(ahead.hits == 1);
  CHECK(ahead.bytes == 20);

  offload::residency<offload::lru> other(1, 3, 2, 10);
  CHECK_THAT(support::said([&] { offload::simulate(of, other, machine); }), ContainsSubstring("1 layers of 3 experts"));
}

TEST_CASE("a wrong prediction costs reads, and every call gets its experts", "[offload]") {
  offload::trace const of = random_trace(2, 6, 60, 3, 0.4f);
  std::int64_t const least = offload::belady_loads(of, 4);
  offload::residency<offload::lru_with_lookahead> known(2, 6, 4, 10);
  std::vector<std::int32_t> const always{0, 5};
  offload::simulated_run const wrong =
      offload::simulate(of, known, {.seconds_per_row = 1.0},
                        [&](auto& cache, std::int64_t call) { cache.expect(static_cast<int>(call % 2), always); });
  CHECK(wrong.calls == of.calls());
  CHECK(wrong.loads >= least);
  CHECK(wrong.needed == run<offload::lru>(of, 4, -1).needed);
}
