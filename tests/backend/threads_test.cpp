#include <cstddef>
#include <latch>
#include <thread>
#include <vector>

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

/// Threads that share the work. The thread sanitizer takes ten times as long, and sees with three what there is to see.
#if defined(__SANITIZE_THREAD__)
constexpr int thread_counts[] = {3};
#else
constexpr int thread_counts[] = {1, 2, 3, 8};
#endif

}  // namespace

TEST_CASE("the result has the same bits for any number of threads, on any pool and on every run", "[forward]") {
  for_each_layer([](any_layer const& layer) {
    problem const p = usual_problem(layer);
    outcome const once = run(p);
    CHECK(same_bits(run(p), once));
    CHECK(same_bits(run(p, {.context = {.threads = 0}}), once));
    for (int threads : thread_counts) {
      INFO(threads << " threads");
      CHECK(same_bits(run(p, {.context = {.threads = threads}}), once));
    }
    for (int workers : thread_counts) {
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

#if !defined(NDEBUG)
TEST_CASE("a second call with the workspace of one that runs is refused where NDEBUG is not defined", "[forward]") {
  using layer = sy::layer<sy::shape{.hidden = 64, .intermediate = 64, .experts = 2, .top_k = 1},
                          sy::router::switch_top1, sy::capacity::dropless, sy::expert::mlp<sy::relu>>;
  constexpr int tokens = 40;  // work for several workers
  std::vector<float> const matrix(2 * 64 * 64, 0.5f), x(tokens * 64, 0.5f);
  std::vector<float> y(x.size()), other(x.size());
  std::vector<std::byte> scratch(layer::workspace_bytes(tokens));
  layer::args args{.tokens = layer::rows(x.data(), tokens),
                   .weights = {.router = {.weight = matrix.data()},
                               .up_proj = layer::in_proj(matrix.data()),
                               .down_proj = layer::out_proj(matrix.data())},
                   .output = layer::rows(y.data(), tokens),
                   .workspace = scratch};
  struct second_call {
    layer::args args;
    int refused = 0, made = 0;
    static void run(void* self, int workers, void (*body)(void*, int), void* argument) {
      auto& second = *static_cast<second_call*>(self);
      try {
        layer::forward(second.args, {.threads = 1});
        ++second.made;
      } catch (sy::error const&) {
        ++second.refused;
      }
      for (int w = 0; w < workers; ++w) body(argument, w);
    }
  } second{args};
  second.args.output = layer::rows(other.data(), tokens);
  sy::thread_pool const pool{&second, 2, &second_call::run};
  layer::forward(args, {.threads = 2, .pool = &pool});
  CHECK(second.refused > 0);
  CHECK(second.made == 0);
  layer::forward(second.args, {.threads = 1});  // after it, the workspace is free again
  CHECK(y == other);
}
#endif
