// Inside an engine that allocates nothing after start-up, has threads of its own, and is built without exceptions.
#include <switchyard/switchyard.hpp>

#include <barrier>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <thread>

namespace sy = switchyard;

using layer = sy::layer<sy::shape{.hidden = 48, .intermediate = 96, .experts = 8, .top_k = 2},
                        sy::router::softmax_top_k, sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>>;

alignas(64) std::byte arena[2 << 20];
std::size_t arena_used = 0;

/// Memory that is there from the start; null when it is used up, which the layer refuses with a sentence.
template <class T>
T* take(std::size_t count) {
  auto* const first = reinterpret_cast<T*>(arena + arena_used);
  arena_used += (count * sizeof(T) + 63) / 64 * 64;
  return arena_used <= sizeof arena ? first : nullptr;
}

/// Three threads that wait for work, and the one that brings it.
struct engine_threads {
  static constexpr int workers = 4;
  std::barrier<> start{workers}, end{workers};
  void (*body)(void*, int) = nullptr;
  void* argument = nullptr;
  int wanted = 0, jobs = 0;
  std::jthread threads[workers - 1];

  engine_threads() {
    for (int worker = 1; worker < workers; ++worker) {
      threads[worker - 1] = std::jthread([this, worker] {
        for (start.arrive_and_wait(); body != nullptr; start.arrive_and_wait()) {
          if (worker < wanted) body(argument, worker);
          end.arrive_and_wait();
        }
      });
    }
  }
  ~engine_threads() {
    body = nullptr;
    start.arrive_and_wait();
  }
  void share(int count, void (*work)(void*, int), void* data) {
    body = work, argument = data, wanted = count, ++jobs;
    start.arrive_and_wait();
    work(data, 0);
    end.arrive_and_wait();
  }
};

int main() {
  constexpr int tokens = 200, hidden = layer::dims.hidden, intermediate = layer::dims.intermediate;
  constexpr int matrices = layer::dims.experts * intermediate * hidden;
  auto* const x = take<float>(tokens * hidden);
  auto* const router = take<float>(layer::dims.experts * hidden);
  auto* const weights = take<float>(3 * matrices);
  for (int i = 0; i < tokens * hidden; ++i) x[i] = static_cast<float>(i * 7 % 13 - 6) / 13.0f;
  for (int i = 0; i < layer::dims.experts * hidden; ++i) router[i] = static_cast<float>(i * 5 % 11 - 5) / 11.0f;
  for (int i = 0; i < 3 * matrices; ++i) weights[i] = static_cast<float>(i * 3 % 17 - 8) / 40.0f;

  std::size_t const scratch = layer::workspace_bytes(tokens);
  layer::args args{.tokens = layer::rows(x, tokens),
                   .weights = {.router = {.weight = router},
                               .gate_proj = layer::in_proj(weights),
                               .up_proj = layer::in_proj(weights + matrices),
                               .down_proj = layer::out_proj(weights + 2 * matrices)},
                   .workspace = {take<std::byte>(scratch), scratch}};
  auto const run = [&](layer::context const& context) {
    args.output = layer::rows(take<float>(tokens * hidden), tokens);
    layer::forward(args, context);
    return args.output.data;
  };

  engine_threads engine;
  sy::thread_pool const pool{.state = &engine,
                             .workers = engine_threads::workers,
                             .run = [](void* self, int count, void (*work)(void*, int), void* data) {
                               static_cast<engine_threads*>(self)->share(count, work, data);
                             }};
  bool const same = std::memcmp(run({.pool = &pool}), run({.threads = 1}), tokens * hidden * sizeof(float)) == 0;
  std::printf("%zu bytes of memory, %d jobs on %d threads of the engine, the same bits on one: %s\n", arena_used,
              engine.jobs, pool.workers, same ? "yes" : "no");
  return same && engine.jobs > 0 ? 0 : 1;
}
