#include <switchyard/offload.hpp>
#include <switchyard/offload/host_store.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "support/failing_store.hpp"
#include "support/said.hpp"

namespace offload = switchyard::offload;
using support::said;

namespace {

constexpr int layers = 2, experts = 6;
constexpr std::int64_t piece_bytes = 1000;

/// Pieces whose bytes say which they are.
struct pieces {
  std::vector<std::byte> bytes = std::vector<std::byte>(layers * experts * 4096);
  offload::host_store store{{bytes.data(), layers, experts, piece_bytes}};

  pieces() {
    for (int p = 0; p < layers * experts; ++p) std::memset(bytes.data() + p * 4096, p + 1, piece_bytes);
  }
};
using slow_store = support::failing_store<offload::host_store>;
template <class Policy = offload::lru_with_lookahead>
using cache_of = offload::expert_cache<slow_store, Policy>;
template <class Policy = offload::lru_with_lookahead>
offload::cache_options<Policy> room_for(int places) {
  return {.budget_bytes = places * 4096 + 5, .horizon = 4};
}

/// One call: what it needs stands whole in the places that it is told.
template <class Cache>
void use(Cache& cache, int layer, std::vector<std::int32_t> const& needed) {
  offload::resident_call call(cache.layer(layer), needed);
  std::vector<std::int32_t> batch(needed.size()), places(needed.size()), used;
  while (int const count = call.take(batch.data(), places.data())) {
    for (int i = 0; i < count; ++i) {
      std::byte const* const at = cache.memory().place(places[static_cast<std::size_t>(i)]);
      std::int32_t const e = batch[static_cast<std::size_t>(i)];
      bool const whole = std::all_of(at, at + piece_bytes,
                                     [&](std::byte b) { return b == static_cast<std::byte>(layer * experts + e + 1); });
      CHECK(whole);
      used.push_back(e);
    }
  }
  std::sort(used.begin(), used.end());
  CHECK(used == needed);
}

/// A policy of a user's own.
struct lower_layers_stay {
  static constexpr std::string_view name = "lower_layers_stay";
  static constexpr bool drops_unneeded = false;
  static constexpr int out_of_turn = 0;
  static bool goes_before(offload::resident const& a, offload::resident const& b) {
    return a.layer != b.layer ? a.layer > b.layer : a.last_use < b.last_use;
  }
};

/// Waits for what a reader does.
template <class Condition>
bool comes_true(Condition const& condition) {
  for (int i = 0; i < 10'000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

}  // namespace

TEMPLATE_TEST_CASE("calls find what they need, and the budget holds, by every policy", "[offload]", offload::exact,
                   offload::lru, offload::lru_with_lookahead, offload::by_next_use, offload::pinned_by_frequency) {
  pieces of;
  slow_store store(of.store);
  for (int places : {1, 2, 5, 12}) {
    cache_of<TestType> cache(store, room_for<TestType>(places));
    CHECK(cache.places() == places);
    for (int i = 0; i < 40; ++i) {
      std::vector<std::int32_t> needed;
      for (int e = 0; e < experts; ++e) {
        if ((i * 7 + e * 5) % 4 == 0) needed.push_back(e);
      }
      if (i % 3 == 0) cache.expect(i % 2, needed);
      if (i % 5 == 0 && cache.room_to_expect() > 0) cache.expect(1 - i % 2, {needed.data(), needed.size() / 2});
      use(cache, i % 2, needed);
    }
    auto const m = cache.measure();
    auto const all = m.all();
    CHECK(m.budget_bytes == places * 4096);
    CHECK(m.peak_bytes <= m.budget_bytes);
    CHECK(m.resident_bytes <= m.peak_bytes);
    CHECK(m.moved_bytes == all.loads * piece_bytes);
    CHECK(all.calls == 40);
    CHECK(all.hits + all.on_the_way + all.loads >= all.needed);
    if (places == 12 && !TestType::drops_unneeded) CHECK(all.loads <= 12);
  }
}

TEST_CASE("what is expected is read before a call needs it, as far as there is room", "[offload]") {
  pieces of;
  slow_store store(of.store);
  cache_of<> cache(store, room_for(3));
  std::int32_t const first[] = {0, 4}, second[] = {1, 2};
  cache.expect(0, first);
  cache.expect(1, second);
  REQUIRE(comes_true([&] { return cache.is_resident(0, 0) && cache.is_resident(0, 4) && cache.is_resident(1, 1); }));
  CHECK_FALSE(cache.is_resident(1, 2));
  use(cache, 0, {0, 4});
  REQUIRE(comes_true([&] { return cache.is_resident(1, 2); }));  // where the call's were
  use(cache, 1, {1, 2});
  auto const m = cache.measure();
  CHECK(m.all().hits == 4);
  CHECK(m.all().loads == 4);
  CHECK(m.layers[0].hits == 2);
  CHECK(m.unused_loads == 0);
  CHECK(m.peak_bytes == 3 * 4096);
}

TEST_CASE("a policy of a user's own says what stays", "[offload]") {
  pieces of;
  slow_store store(of.store);
  cache_of<lower_layers_stay> cache(store, room_for<lower_layers_stay>(3));
  use(cache, 0, {0, 1});
  use(cache, 1, {0});
  use(cache, 1, {1, 2});
  CHECK(cache.is_resident(0, 0));
  CHECK(cache.is_resident(0, 1));
  CHECK(cache.is_resident(1, 2));
}

TEST_CASE("a call computes with what is there before the rest arrives", "[offload]") {
  pieces of;
  slow_store store(of.store);
  cache_of<> cache(store, room_for(12));
  use(cache, 0, {1, 3});
  store.hold();
  std::int32_t const needed[] = {0, 1, 3, 5};
  std::int32_t batch[4], places[4];
  offload::resident_call call(cache.layer(0), needed);
  REQUIRE(call.take(batch, places) == 2);
  CHECK(batch[0] == 1);
  CHECK(batch[1] == 3);
  REQUIRE(store.wait_for_reads(4));
  store.release();
  int count = 0;
  while (int const taken = call.take(batch, places)) count += taken;
  CHECK(count == 2);
}

TEST_CASE("a store that fails is told to the call that needs the piece, and to no other", "[offload]") {
  pieces of;
  slow_store store(of.store);
  cache_of<> cache(store, room_for(4));
  SECTION("it says so") { store.fail_piece(1, 3); }
  SECTION("the piece ends early") { store.cut_short_piece(1, 3); }
  SECTION("it throws") { store.throw_read(1); }
  CHECK(said([&] {
          use(cache, 1, {2, 3});
        }).find("of layer 1 from its store, got the store fails on request") != std::string::npos);
  store.heal();
  use(cache, 1, {2, 3});
  CHECK(cache.measure().moved_bytes == 2 * piece_bytes);
  // What was read ahead, and could not be: the call tries again.
  store.fail_piece(0, 5);
  std::int32_t const wrong[] = {5};
  cache.expect(0, wrong);
  REQUIRE(comes_true([&] { return store.reads().size() > 3; }));
  use(cache, 0, {1});
  CHECK(said([&] { use(cache, 0, {5}); }).find("expert 5 of layer 0") != std::string::npos);
  store.heal();
  use(cache, 0, {5});
}

TEST_CASE("a call that waits is cancelled, and so are those after it until the cache resumes", "[offload]") {
  pieces of;
  slow_store store(of.store);
  store.hold();
  cache_of<> cache(store, room_for(4));
  std::thread other([&] {
    store.wait_for_reads(1);
    cache.cancel();
  });
  std::string const got = said([&] { use(cache, 0, {2, 4}); });
  other.join();
  CHECK(got == "switchyard: layer::forward, weights.experts: expected its experts, got expert_cache::cancel");
  CHECK(said([&] { use(cache, 0, {2}); }) == got);
  cache.resume();
  store.release();
  use(cache, 0, {2, 4});
}

TEST_CASE("a cache that is used wrongly says how", "[offload]") {
  pieces of;
  slow_store store(of.store);
  CHECK(said([&] { cache_of<> none(store, {.budget_bytes = 4095}); }) ==
        "switchyard: offload::expert_cache, budget_bytes: expected at least 4096, what one expert takes up, got 4095");
  CHECK(said([&] { cache_of<> none(store, {.budget_bytes = 4096, .readers = 0}); }) ==
        "switchyard: offload::expert_cache, readers: expected at least 1, got 0");
  CHECK(said([&] { cache_of<> none(store, {.budget_bytes = 4096, .frequencies = {1.0}}); }) ==
        "switchyard: offload, frequencies: expected 12 numbers, [layers, experts], got 1");
  cache_of<> cache(store, room_for(2));
  CHECK(said([&] { cache.layer(2); }) == "switchyard: offload::expert_cache, layer: expected 0 to 1, got 2");
  std::int32_t const bad[] = {1, 6};
  CHECK(said([&] { cache.expect(0, bad); }) ==
        "switchyard: offload::expert_cache::expect, experts: expected 0 to 5, got 6");
  CHECK(said([&] { cache.expect(-1, {}); }) ==
        "switchyard: offload::expert_cache::expect, layer: expected 0 to 1, got -1");
  for (int i = 0; i < 4; ++i) cache.expect(0, {});
  CHECK(said([&] { cache.expect(0, {}); }) ==
        "switchyard: offload::expert_cache::expect: expected fewer calls than the horizon, or a longer one "
        "(options.horizon), got one more than there is room for");
  cache.forget_expected();
  CHECK(cache.room_to_expect() == 4);
  std::int32_t const needed[] = {1};
  offload::resident_call first(cache.layer(1), needed);
  CHECK(said([&] { use(cache, 0, {0}); }) ==
        "switchyard: layer::forward, weights.experts: expected a cache that no other call uses at the moment (one call "
        "at "
        "a time), got one that a call of layer 1 uses");
}

TEST_CASE("measures are kept for each call as asked, and written as JSON", "[offload]") {
  pieces of;
  slow_store store(of.store);
  cache_of<> cache(store, {.budget_bytes = 2 * 4096, .record_calls = 2});
  use(cache, 0, {0});
  use(cache, 1, {0, 1});
  use(cache, 0, {2});
  auto m = cache.measure();
  REQUIRE(m.calls.size() == 2);
  CHECK(m.calls[1].layer == 1);
  CHECK(m.calls[1].needed == 2);
  CHECK(m.calls[1].moved_bytes == 3 * piece_bytes);
  CHECK(m.calls[1].resident_bytes == 2 * 4096);
  CHECK(m.calls[1].begin_seconds >= m.calls[0].begin_seconds);
  m.calls.pop_back();
  m.layers[0].waiting_seconds = 0.25;
  m.layers[1].waiting_seconds = 0.5;
  m.calls[0].begin_seconds = m.calls[0].seconds = m.calls[0].waiting_seconds = 1;
  CHECK(
      to_json(m) ==
      R"({"budget_bytes": 8192, "place_bytes": 4096, "piece_bytes": 1000, "resident_bytes": 8192, "peak_bytes": 8192, )"
      R"("moved_bytes": 4000, "unused_loads": 0, "layers": [{"calls": 2, "needed": 2, "hits": 0, "on_the_way": 0, )"
      R"("loads": 2, "waiting_seconds": 0.250000}, {"calls": 1, "needed": 2, "hits": 0, "on_the_way": 0, "loads": 2, )"
      R"("waiting_seconds": 0.500000}], "calls": [{"layer": 0, "needed": 1, "hits": 0, "on_the_way": 0, )"
      R"("moved_bytes": 1000, "resident_bytes": 4096, "begin_seconds": 1.000000, "seconds": 1.000000, )"
      R"("waiting_seconds": 1.000000}]})");
  cache.reset_measures();
  CHECK(cache.measure().moved_bytes == 0);
  CHECK(cache.measure().resident_bytes == 8192);
}
