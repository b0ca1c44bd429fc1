#pragma once

#include <chrono>
#include <cstddef>
#include <ctime>
#include <functional>
#include <thread>
#include <vector>

/// Contenders that take turns in one run.
namespace switchyard::bench::peers {

/// Seconds of the calls of one contender, round by round.
struct call_times {
  std::vector<double> wall;
  /// What the process computed, a thread's share. Other work on the machine lengthens a call but not this, which includes waiting for one another.
  std::vector<double> cpu;
};

inline double process_seconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

/// Every round each contender runs once. Who begins changes from round to round.
inline std::vector<call_times> in_turns(std::vector<std::function<void()>> const& calls, int rounds, int threads) {
  using clock = std::chrono::steady_clock;
  std::vector<call_times> times(calls.size());
  for (int round = 0; round < rounds; ++round) {
    for (std::size_t turn = 0; turn < calls.size(); ++turn) {
      std::size_t const c = (turn + static_cast<std::size_t>(round)) % calls.size();
      // Threads of the one before still spin for a while, waiting for more to do. Then, threads that wake up are
      // often put on one core together: untimed calls, until they have moved apart.
      std::this_thread::sleep_for(std::chrono::milliseconds(60));
      auto const warm = clock::now() + std::chrono::milliseconds(30);
      do calls[c]();
      while (clock::now() < warm);
      auto const begin = clock::now();
      double const cpu_begin = process_seconds();
      calls[c]();
      times[c].cpu.push_back((process_seconds() - cpu_begin) / threads);
      times[c].wall.push_back(std::chrono::duration<double>(clock::now() - begin).count());
    }
  }
  return times;
}

}  // namespace switchyard::bench::peers
