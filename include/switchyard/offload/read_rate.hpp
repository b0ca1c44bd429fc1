#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/offload/block_memory.hpp>
#include <switchyard/offload/store.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace switchyard::offload {

struct read_rate_options {
  double seconds = 2.0;     ///< for so long, but each reader reads a piece at least
  std::int64_t pieces = 0;  ///< at most so many, 0: as many as there is time for
  int readers = default_readers;
};

/// How fast a store is read, in bytes of pieces a second: by threads of this function's own that read one piece after the other, in the way
/// that a cache does, in an order that jumps through the store. Throws what goes wrong while it reads.
template <expert_store Store>
double measured_read_rate(Store& store, read_rate_options const& options = {}) {
  using clock = std::chrono::steady_clock;
  std::int64_t const count = std::int64_t{store.layers()} * store.experts();
  // A step that has no factor in common with the number of pieces meets all of them.
  std::int64_t step = count * 5 / 8 + 1;
  auto const factor = [](std::int64_t a, std::int64_t b) {
    while (b != 0) a = std::exchange(b, a % b);
    return a;
  };
  while (factor(step, count) != 1) ++step;

  std::atomic<std::int64_t> next = 0, read = 0;
  std::mutex mutex;
  std::string wrong;
  std::vector<block_memory> places;
  for (int i = 0; i < options.readers; ++i) places.push_back(take_blocks(place_bytes(store.piece_bytes())));
  clock::time_point const begin = clock::now();
  auto const is_over = [&] { return std::chrono::duration<double>(clock::now() - begin).count() >= options.seconds; };
  auto const run = [&](std::byte* place) {
    do {
      std::int64_t const number = next++;
      if (options.pieces > 0 && number >= options.pieces) return;
      std::int64_t const piece = number % count * step % count;
      std::string said =
          store.read(static_cast<int>(piece / store.experts()), static_cast<int>(piece % store.experts()), place);
      if (!said.empty()) {
        std::lock_guard const lock(mutex);
        wrong = said;
        return;
      }
      ++read;
    } while (!is_over());
  };
  std::vector<std::thread> threads;
  for (block_memory const& place : places) threads.emplace_back(run, place.get());
  for (std::thread& t : threads) t.join();
  if (!wrong.empty()) fail("offload::measured_read_rate", "a store that can be read", wrong);
  double const seconds = std::chrono::duration<double>(clock::now() - begin).count();
  return static_cast<double>(read.load()) * static_cast<double>(store.piece_bytes()) / seconds;
}

}  // namespace switchyard::offload
