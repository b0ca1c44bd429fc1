#pragma once

#include <switchyard/backend/cpu/tile.hpp>
#include <switchyard/core/error.hpp>

#include <atomic>
#include <cstdint>
#include <string>
#include <type_traits>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace switchyard {

/// A caller's own threads. `run` calls `body(argument, worker)` once for each worker from 0 to `workers - 1`, at
/// the same time or one after the other, and returns when all have returned. It is never asked for more workers than
/// the pool has. `body` does not throw; it needs at most 64 KB of stack.
struct thread_pool {
  void* state = nullptr;  ///< handed to `run` as it is
  int workers = 1;        ///< how many the pool has
  void (*run)(void* state, int workers, void (*body)(void* argument, int worker), void* argument) = nullptr;
};

/// What a call does about a token that cannot be routed: see `decide`, and `precomputed_routes`.
enum class unroutable_tokens {
  throw_error,  ///< `forward` throws, and has written nothing but workspace
  give_nan      ///< what a GPU does: the outputs of that token are NaN, and all other tokens get theirs
};

/// What a call on the CPU needs besides its data.
struct cpu_context {
  /// Most threads to use; 0: as many as `pool` or OpenMP has. A program built without OpenMP that plugs in no
  /// pool runs on the calling thread.
  int threads = 0;
  thread_pool const* pool = nullptr;  ///< the caller's own threads, instead of OpenMP's
  instruction_set instructions = instruction_set::automatic;
  /// Experts with so many rows or more are computed by panels of rows, those with fewer by small groups: 16 or more, or 0 for
  /// what is usually fastest, 32, or with AMX's tiles 16, and 64 for floats. The two add in another order: a row has the same bits whatever rows stand
  /// beside it only where all calls take the same way, such as with a number that no expert reaches.
  int least_panel_rows = 0;
  float_products floats = float_products::exact;             ///< another one is never chosen silently
  quantised_products quantised = quantised_products::exact;  ///< another one is never chosen silently
  unroutable_tokens unroutable = unroutable_tokens::throw_error;
};

namespace cpu {

inline constexpr int least_rows_of_panels = 16;

/// The context with its choices made: a number of threads and an instruction set that this machine has.
inline cpu_context resolved(cpu_context context) {
  if (context.threads < 0) fail("layer::forward, context.threads", "0 (all) or more", std::to_string(context.threads));
  // An expert that is computed by panels has room for whole vectors of the widest instructions.
  if (context.least_panel_rows != 0 && context.least_panel_rows < least_rows_of_panels) {
    fail("layer::forward, context.least_panel_rows", "0 (usual), or 16 or more",
         std::to_string(context.least_panel_rows));
  }
  if (context.pool != nullptr && (context.pool->run == nullptr || context.pool->workers < 1)) {
    fail("layer::forward, context.pool", "a run function and at least 1 worker",
         context.pool->run == nullptr ? "a null function" : std::to_string(context.pool->workers) + " workers");
  }
  if (context.pool != nullptr) {
    if (context.threads == 0 || context.threads > context.pool->workers) context.threads = context.pool->workers;
  } else if (context.threads == 0) {
#if defined(_OPENMP)
    context.threads = omp_get_max_threads();
#else
    context.threads = 1;
#endif
  }
  instruction_set const best = best_instruction_set();
  if (context.instructions == instruction_set::automatic) context.instructions = best;
  if (context.instructions > best) {
    fail("layer::forward, context.instructions", std::string(name_of(best)) + " or less on this machine",
         std::string(name_of(context.instructions)));
  }
  if (context.floats != float_products::exact && context.instructions != instruction_set::amx) {
    fail("layer::forward, context.floats", "float_products::exact, or instruction_set::amx",
         "three_of_bfloat16 with " + std::string(name_of(context.instructions)));
  }
  return context;
}

/// Calls `item(i)` for every i below `items`, or `item(i, next)` with what the same thread probably does after it. Items are
/// handed out one by one, so uneven ones balance; each writes what no other does, so neither the order nor the number of
/// threads shows in the result.
template <class Item>
void parallel_for(cpu_context const& context, std::int64_t items, Item const& item) {
  int const workers = context.threads < items ? context.threads : static_cast<int>(items);
  struct job {
    Item const& item;
    std::int64_t items;
    int workers;
    std::atomic<std::int64_t> next{0};

    static void work(void* self, int) {
      job& j = *static_cast<job*>(self);
      for (std::int64_t i; (i = j.next.fetch_add(1, std::memory_order_relaxed)) < j.items;) {
        if constexpr (std::is_invocable_v<Item const&, std::int64_t, std::int64_t>) {
          j.item(i, i + j.workers);
        } else {
          j.item(i);
        }
      }
    }
  };
  job shared_job{item, items, workers};
  if (workers <= 1) return job::work(&shared_job, 0);
  if (context.pool != nullptr) {
    context.pool->run(context.pool->state, workers, &job::work, &shared_job);
    job::work(&shared_job, 0);  // what a pool with fewer workers than it says has left
    return;
  }
#if defined(_OPENMP)
#pragma omp parallel num_threads(workers)
  job::work(&shared_job, omp_get_thread_num());
#else
  job::work(&shared_job, 0);
#endif
}

}  // namespace cpu

/// How a call with this context runs on this machine: `avx512, 2 threads`. Fails as `layer::forward` would.
inline std::string describe(cpu_context const& context) {
  cpu_context const chosen = cpu::resolved(context);
  return std::string(name_of(chosen.instructions)) + ", " + std::to_string(chosen.threads) +
         (chosen.threads == 1 ? " thread" : " threads");
}

}  // namespace switchyard
