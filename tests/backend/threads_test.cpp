#include <algorithm>
#include <latch>
#include <thread>
#include <utility>

#include "backend/check.hpp"
#include "catch.hpp"
#include "support/any_layer.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/random_problem.hpp"
#include "support/threads.hpp"

namespace sy = switchyard;
using namespace support;

namespace {

/// A problem on which every step has work for several workers.
problem usual_problem(any_layer const& layer) { return random_problem(layer, 133, routing::free, 7); }

}  // namespace

TEST_CASE("the result has the same bits for any number of threads, on any pool and on every run", "[forward]") {
  for_each_layer([](any_layer const& layer) {
    problem const p = usual_problem(layer);
    outcome const once = run(p);
    CHECK(same_bits(run(p), once));
    for (int threads : {0, 1, 2, 3, 8}) {
      INFO(threads << " threads");
      CHECK(same_bits(run(p, {.context = {.threads = threads}}), once));
    }
    for (int workers : {1, 2, 3, 8}) {
      INFO(workers << " workers");
      sy::thread_pool const threads = thread_per_worker::pool(workers);
      sy::thread_pool const backwards = one_after_the_other::pool(workers);
      CHECK(same_bits(run(p, {.context = {.pool = &threads}}), once));
      CHECK(same_bits(run(p, {.context = {.pool = &backwards}}), once));
    }
    sy::thread_pool const pool = thread_per_worker::pool(8);
    CHECK(same_bits(run(p, {.context = {.threads = 3, .pool = &pool}}), once));
  });
}

namespace {

/// A pool whose threads may be less than it says: it runs the first `runs` workers on the calling thread.
struct meagre_pool {
  int runs = 0;
  int most_asked = 0;

  static void run(void* state, int workers, void (*body)(void* argument, int worker), void* argument) {
    auto& self = *static_cast<meagre_pool*>(state);
    self.most_asked = std::max(self.most_asked, workers);
    for (int w = 0; w < std::min(self.runs, workers); ++w) body(argument, w);
  }
  sy::thread_pool pool(int workers) { return {this, workers, &run}; }
};

}  // namespace

TEST_CASE("a pool is never asked for more workers than it has or than the context allows", "[forward]") {
  for_each_layer([](any_layer const& layer) {
    problem const p = usual_problem(layer);
    outcome const once = run(p);
    for (auto [threads, workers] : {std::pair{8, 2}, {2, 8}, {0, 3}}) {
      INFO(threads << " threads, " << workers << " workers");
      meagre_pool few{.runs = workers};
      sy::thread_pool const pool = few.pool(workers);
      CHECK(same_bits(run(p, {.context = {.threads = threads, .pool = &pool}}), once));
      CHECK(few.most_asked == (threads == 0 ? workers : std::min(threads, workers)));
    }
  });
}

TEST_CASE("a pool that runs fewer workers than it is asked for, or none, gives the right result", "[forward]") {
  for_each_layer([](any_layer const& layer) {
    problem const p = usual_problem(layer);
    outcome const once = run(p);
    for (int runs : {0, 1, 3}) {
      INFO(runs << " workers run");
      meagre_pool few{.runs = runs};
      sy::thread_pool const pool = few.pool(4);
      CHECK(same_bits(run(p, {.context = {.pool = &pool}}), once));
      CHECK(few.most_asked == 4);
    }
  });
}

TEST_CASE("two threads may call forward of one layer at the same time", "[forward]") {
  for_each_layer([](any_layer const& layer) {
    problem const first = usual_problem(layer), second = random_problem(layer, 70, routing::free, 8);
    outcome const a = run(first), b = run(second);
    sy::thread_pool const pool = one_after_the_other::pool(3);
    for (sy::thread_pool const* plugged : {static_cast<sy::thread_pool const*>(nullptr), &pool}) {
      call const how{.context = {.threads = plugged == nullptr ? 1 : 3, .pool = plugged}};
      std::latch start(2);
      outcome beside;
      std::thread other([&] {
        start.arrive_and_wait();
        beside = run(second, how);
      });
      start.arrive_and_wait();
      outcome const here = run(first, how);
      other.join();
      CHECK(same_bits(here, a));
      CHECK(same_bits(beside, b));
    }
  });
}
