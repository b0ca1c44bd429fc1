#include <switchyard/offload/policies.hpp>
#include <switchyard/offload/residency.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <random>
#include <set>
#include <type_traits>
#include <utility>
#include <vector>

#include "catch.hpp"

using namespace switchyard::offload;

namespace {

struct call {
  int layer;
  std::vector<std::int32_t> experts;
};
using trace = std::vector<call>;

/// Loads of a trace, when `ahead` calls are expected at a time, each as it comes. What happens meanwhile happens in an order drawn by `seed`: reads
/// begin, arrive, and are used.
template <class Policy>
struct player {
  residency<Policy> of;
  std::mt19937 random;
  int loads = 0, most_used = 0;
  std::vector<typename residency<Policy>::load> on_their_way = {};
  std::set<std::pair<int, int>> resident = {};  // by what the residency said, place by place
  std::map<int, std::pair<int, int>> in_place = {};

  void begin_read() {
    auto const next = of.next_load();
    if (!next) return;
    ++loads;
    std::pair const piece{next->layer, next->expert};
    REQUIRE(resident.count(piece) == 0);
    if (auto const old = in_place.find(next->place); old != in_place.end()) {
      for (auto const& other : on_their_way) REQUIRE(other.place != next->place);
      resident.erase(old->second);
    }
    in_place[next->place] = piece;
    resident.insert(piece);
    on_their_way.push_back(*next);
    most_used = std::max(most_used, of.used_places());
  }
  void arrive() {
    if (on_their_way.empty()) return;
    std::size_t const i = random() % on_their_way.size();
    of.arrived(on_their_way[i].place);
    on_their_way.erase(on_their_way.begin() + static_cast<std::ptrdiff_t>(i));
  }
  void play(call const& c) {
    of.begin(c.layer, c.experts);
    for (auto i = in_place.begin(); i != in_place.end();) {  // what the policy has dropped
      bool const there = of.state_of(i->second.first, i->second.second) != residency<Policy>::state::empty;
      if (!there) resident.erase(i->second);
      i = there ? std::next(i) : in_place.erase(i);
    }
    std::vector<std::int32_t> used;
    for (int turns = 0; !of.is_over(); ++turns) {
      REQUIRE(turns < 100'000);  // it would never end
      switch (random() % 3) {
        case 0: begin_read(); break;
        case 1: arrive(); break;
        default:
          std::vector<int> taken;
          of.take([&](int expert, int place) {
            REQUIRE(in_place.at(place) == std::pair{c.layer, expert});
            used.push_back(expert);
            taken.push_back(place);
          });
          while (random() % 2 == 0) begin_read();  // meanwhile
          for (auto const& load : on_their_way) {
            REQUIRE(std::count(taken.begin(), taken.end(), load.place) == 0);  // what is used is not overwritten
          }
          REQUIRE(of.finish_taken() == static_cast<int>(taken.size()));
      }
    }
    std::sort(used.begin(), used.end());
    REQUIRE(used == c.experts);
    of.end();
  }
};

template <class Policy>
int loads_of(trace const& calls, int layers, int experts, int places, std::size_t ahead, unsigned seed,
             std::vector<double> const& frequencies) {
  player<Policy> p{{layers, experts, places, 40, {}, frequencies}, std::mt19937(seed)};
  std::size_t told = 0;
  for (std::size_t i = 0; i < calls.size(); ++i) {
    for (told = std::max(told, i); ahead > 0 && told < calls.size() && told < i + ahead; ++told) {
      p.of.expect(calls[told].layer, calls[told].experts);
    }
    p.play(calls[i]);
  }
  CHECK(p.most_used <= places);
  return p.loads;
}

trace random_trace(int layers, int experts, int most_needed, int calls, std::mt19937& random) {
  trace result;
  for (int i = 0; i < calls; ++i) {
    std::set<std::int32_t> needed;
    int const count = static_cast<int>(random() % static_cast<unsigned>(most_needed + 1));
    while (static_cast<int>(needed.size()) < count) {
      needed.insert(static_cast<std::int32_t>(random() % static_cast<unsigned>(experts)));
    }
    result.push_back({i % layers, {needed.begin(), needed.end()}});
  }
  return result;
}

}  // namespace

TEST_CASE("what the present table does not need goes, as published", "[offload]") {
  // The hand-checked movement of SiDA: 6 experts, groups that need {0, 2}, {2, 3} and {5}.
  residency<exact> of(1, 6, 6, 4);
  std::vector<std::vector<std::int32_t>> const groups{{0, 2}, {2, 3}, {5}}, loads{{0, 2}, {3}, {5}};
  for (std::size_t g = 0; g < groups.size(); ++g) {
    std::vector<std::int32_t> resident, loaded;
    of.begin(0, groups[g]);
    while (auto const next = of.next_load()) {
      loaded.push_back(next->expert);
      of.arrived(next->place);
    }
    of.take([](int, int) {});
    of.finish_taken();
    of.end();
    for (int e = 0; e < 6; ++e) {
      if (of.state_of(0, e) != residency<exact>::state::empty) resident.push_back(e);
    }
    CHECK(loaded == loads[g]);
    CHECK(resident == groups[g]);
  }
}

TEMPLATE_TEST_CASE("reading ahead keeps to the policy, in any order of events", "[offload]", exact, lru,
                   lru_with_lookahead, by_next_use, pinned_by_frequency) {
  std::mt19937 random(7);
  int all_on_demand = 0, all_ahead = 0;
  for (int round = 0; round < 30; ++round) {
    CAPTURE(round);
    int const layers = 1 + static_cast<int>(random() % 3), experts = 2 + static_cast<int>(random() % 9);
    int const places = 1 + static_cast<int>(random() % static_cast<unsigned>(layers * experts));
    trace const calls = random_trace(layers, experts, experts / 2 + 1, 40, random);
    std::vector<double> frequencies;
    for (int p = 0; p < layers * experts; ++p) frequencies.push_back(static_cast<double>(random() % 4));
    int const on_demand = loads_of<TestType>(calls, layers, experts, places, 0, 1, frequencies);
    for (std::size_t ahead : {1, 2, 8}) {
      int const loads =
          loads_of<TestType>(calls, layers, experts, places, ahead, static_cast<unsigned>(round), frequencies);
      all_on_demand += on_demand;
      all_ahead += loads;
      if (std::is_same_v<TestType, lru>) CHECK(loads == on_demand);
    }
  }
  // Where reads that wait for a place let later ones pass, the policy sees them in another order.
  CHECK(all_ahead < 1.02 * all_on_demand);
  if (std::is_same_v<TestType, lru_with_lookahead>) CHECK(all_ahead < 0.95 * all_on_demand);
}

namespace {

/// The least number of loads when all is known (Belady): what a call finds is used first, then the others are read one after the other, and what is
/// needed last goes.
int least_loads(trace const& calls, int places) {
  std::set<std::pair<int, int>> resident;
  int loads = 0;
  auto const next_use = [&](std::pair<int, int> const& piece, std::size_t after) {
    for (std::size_t i = after + 1; i < calls.size(); ++i) {
      if (calls[i].layer == piece.first && std::count(calls[i].experts.begin(), calls[i].experts.end(), piece.second)) {
        return i;
      }
    }
    return calls.size();
  };
  for (std::size_t i = 0; i < calls.size(); ++i) {
    auto const before = resident;
    for (std::int32_t e : calls[i].experts) {
      if (before.count({calls[i].layer, e})) continue;
      ++loads;
      if (static_cast<int>(resident.size()) == places) {
        resident.erase(std::max_element(resident.begin(), resident.end(),
                                        [&](auto const& a, auto const& b) { return next_use(a, i) < next_use(b, i); }));
      }
      resident.insert({calls[i].layer, e});
    }
  }
  return loads;
}

}  // namespace

TEST_CASE("with all calls known the lookahead reads hardly more than has to be", "[offload]") {
  std::mt19937 random(11);
  int all = 0, least = 0;
  for (int round = 0; round < 40; ++round) {
    CAPTURE(round);
    int const layers = 1 + static_cast<int>(random() % 3), experts = 2 + static_cast<int>(random() % 9);
    int const places = 1 + static_cast<int>(random() % static_cast<unsigned>(layers * experts));
    trace const calls = random_trace(layers, experts, experts / 2 + 1, 40, random);
    all += loads_of<lru_with_lookahead>(calls, layers, experts, places, 40, static_cast<unsigned>(round), {});
    least += least_loads(calls, places);
  }
  CHECK(all <= 1.10 * least);
  CHECK(all >= 0.98 * least);  // a call may read in another order
}

TEST_CASE("where layers take turns, an estimate of the next use reads less than the least recent one", "[offload]") {
  // Calls of 4 layers that need 4 to 6 of 8 experts, some of them often: all are expected by nobody.
  std::mt19937 random(3);
  trace calls;
  for (int i = 0; i < 200; ++i) {
    std::set<std::int32_t> needed;
    while (needed.size() < 5) needed.insert(static_cast<std::int32_t>(std::min(random() % 8, random() % 8)));
    calls.push_back({i % 4, {needed.begin(), needed.end()}});
  }
  for (int places : {4, 8, 16, 24}) {
    CAPTURE(places);
    int const recent = loads_of<lru>(calls, 4, 8, places, 0, 1, {}),
              estimated = loads_of<by_next_use>(calls, 4, 8, places, 0, 1, {}), least = least_loads(calls, places);
    CHECK(estimated < 0.95 * recent);
    CHECK(estimated - least < 0.6 * (recent - least));
  }
}

TEST_CASE("what was expected and does not come is forgotten", "[offload]") {
  using pieces = residency<lru_with_lookahead>;
  pieces of(2, 4, 2, 3);
  auto const call = [&](int layer, std::vector<std::int32_t> const& experts) {
    of.begin(layer, experts);
    while (!of.is_over()) {
      if (auto const next = of.next_load()) of.arrived(next->place);
      of.take([](int, int) {});
      of.finish_taken();
    }
    of.end();
  };
  auto const is_there = [&](int layer, int expert) { return of.state_of(layer, expert) == pieces::state::ready; };
  auto const expect = [&](int layer, std::vector<std::int32_t> const& experts) { of.expect(layer, experts); };
  call(0, {0, 1});
  expect(1, {2});
  expect(0, {0});
  expect(1, {3});
  CHECK(of.room_to_expect() == 0);
  call(0, {1});  // the second is this one, and the first is past
  CHECK(of.room_to_expect() == 2);
  CHECK(is_there(1, 3));  // read ahead for the third; what nobody expects and was used before has gone
  CHECK(is_there(0, 1));
  CHECK_FALSE(is_there(0, 0));
  expect(0, {3});
  auto const next = of.next_load();
  REQUIRE(next.has_value());
  CHECK(next->layer == 0);
  CHECK(next->expert == 3);
  CHECK_FALSE(is_there(0, 1));
  of.failed(next->place);
  CHECK_FALSE(of.next_load().has_value());  // not again before a call needs it
  call(0, {3});
  CHECK(is_there(0, 3));
  call(1, {3});
  CHECK(is_there(1, 3));
  CHECK(of.room_to_expect() == 3);
  expect(0, {0, 2});
  of.forget_expected();
  CHECK(of.room_to_expect() == 3);
  CHECK_FALSE(of.next_load().has_value());
}
