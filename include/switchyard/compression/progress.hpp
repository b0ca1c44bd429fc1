#pragma once

#include <chrono>
#include <functional>

namespace switchyard::compression {

/// Called now and then with the share of the work that is done, from 0 to 1. It returns false to stop.
using keep_going = std::function<bool(double done)>;

/// What a computation does, and how far it is.
enum class phase {
  matching,    ///< experts with the centre, over and over
  comparing,   ///< experts with each other, for the report
  compressing  ///< what experts have beside the centre
};

/// `expert` is being worked on. Where `phase` is `matching`, it is matched with the centre that the expert `start` began, for the
/// `iteration`-th time, from 1.
struct progress {
  compression::phase phase = phase::matching;
  int start = 0, iteration = 0, expert = 0;
  double done =
      0.0;  ///< share of this phase, from 0 to 1; an estimate while it is not known how many iterations there will be
  double seconds_left = 0.0;  ///< of this phase, at the speed so far; negative while that is not known
};

/// Called now and then, several times a second while experts are matched, and in front of each expert that is averaged or compressed. It
/// returns false to stop: whatever runs returns at the next such place, and goes on later where it stood. Nothing is called within a
/// `truncated_svd`, which takes minutes for a matrix as large as an expert of Mixtral.
using watcher = std::function<bool(progress const&)>;

namespace detail {

/// Estimates a remaining time from the time that some of the work took.
class pace {
 public:
  /// `done` is what was done before, in the units of `seconds_left`.
  explicit pace(double done = 0.0) : done_before_(done), start_(std::chrono::steady_clock::now()) {}

  double seconds_left(double done, double all) const {
    double const seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    return done > done_before_ ? seconds * (all - done) / (done - done_before_) : -1.0;
  }

 private:
  double done_before_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace detail

}  // namespace switchyard::compression
