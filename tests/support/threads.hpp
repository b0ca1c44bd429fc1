#pragma once

#include <switchyard/switchyard.hpp>

#include <thread>
#include <vector>

/// Pools of threads.
namespace support {

namespace sy = switchyard;

/// A thread per worker, started anew for each piece of work: slow, and all that a test needs.
struct thread_per_worker {
  static void run(void*, int workers, void (*body)(void* argument, int worker), void* argument) {
    std::vector<std::thread> threads;
    for (int w = 0; w < workers; ++w) threads.emplace_back(body, argument, w);
    for (std::thread& t : threads) t.join();
  }
  static sy::thread_pool pool(int workers) { return {nullptr, workers, &run}; }
};

/// All workers on the calling thread, the last one first.
struct one_after_the_other {
  static void run(void*, int workers, void (*body)(void* argument, int worker), void* argument) {
    for (int w = workers - 1; w >= 0; --w) body(argument, w);
  }
  static sy::thread_pool pool(int workers) { return {nullptr, workers, &run}; }
};

}  // namespace support
