#pragma once

#include <switchyard/offload/bounded_queue.hpp>

#include <cstddef>
#include <exception>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>
#include <type_traits>
#include <utility>

namespace switchyard::offload {

/// A thread that makes items ahead of who uses them, such as the tables of SiDA, and a bounded queue between the two. The pipeline owns
/// the thread; the user is whoever calls `next`.
///
///   pipeline<hash_table> tables([&]() -> std::optional<hash_table> { ... });  // nothing: the stream ends
///   while (std::optional<hash_table> table = tables.next()) run_group(*table);
///
/// Items come out in the order in which they were made. What the thread throws arrives on the caller's thread, once, after the items that
/// were made before it: `next` throws it, and returns nothing from then on. An exception that nobody asks for with `next`, and all after
/// `cancel`, are lost. Built without exceptions, an error ends the program where it happens.
///
/// Source: Du et al. 2024, SiDA-MoE: Sparsity-Inspired Data-Aware Serving, with its code: a queue of 16 between the thread that
/// builds hash tables and the one that infers, ended by a null entry.
template <class Item>
class pipeline {
 public:
  /// `produce()` makes the next item, a `std::optional<Item>`, on a thread of its own, from now on; nothing ends the stream, and it is not
  /// called again. It may take a `std::stop_token`, which says when nobody wants its items any more. At most `capacity` items wait, and one
  /// more is being made. Throws `error` for a capacity of 0.
  template <class Produce>
  explicit pipeline(Produce produce, std::size_t capacity = 16)
      : queue_(capacity),
        thread_([this, produce = std::move(produce)](std::stop_token stop) mutable { run(produce, std::move(stop)); }) {
    static_assert(std::is_invocable_r_v<std::optional<Item>, Produce&> ||
                      std::is_invocable_r_v<std::optional<Item>, Produce&, std::stop_token>,
                  "switchyard: a pipeline is made of a function that returns the next item as std::optional<Item>, and "
                  "takes nothing or a std::stop_token.");
  }
  pipeline(pipeline const&) = delete;
  pipeline& operator=(pipeline const&) = delete;
  /// Cancels, and waits for the call of `produce` that runs.
  ~pipeline() { cancel(); }

  /// The next item; waits for it. Nothing at the end of the stream, and after `cancel`. Throws what the thread has thrown.
  std::optional<Item> next() {
    std::optional<Item> item = queue_.pop();
#if defined(__cpp_exceptions)
    if (!item) {
      std::exception_ptr failure;
      {
        std::lock_guard const lock(failure_mutex_);
        failure = std::exchange(failure_, nullptr);
      }
      if (failure && !thread_.get_stop_token().stop_requested()) std::rethrow_exception(failure);
    }
#endif
    return item;
  }

  /// Throws away what waits and has the thread end after the item that it makes. A `next` that waits returns nothing. Any thread may call
  /// it, at any time.
  void cancel() {
    thread_.request_stop();
    queue_.cancel();
  }

 private:
  template <class Produce>
  void run(Produce& produce, std::stop_token stop) {
#if defined(__cpp_exceptions)
    try {
      make_items(produce, stop);
    } catch (...) {
      std::lock_guard const lock(failure_mutex_);
      failure_ = std::current_exception();
    }
#else
    make_items(produce, stop);
#endif
    queue_.close();
  }
  template <class Produce>
  void make_items(Produce& produce, std::stop_token const& stop) {
    while (!stop.stop_requested()) {
      std::optional<Item> item;
      if constexpr (std::is_invocable_v<Produce&, std::stop_token>) {
        item = produce(stop);
      } else {
        item = produce();
      }
      if (!item || !queue_.push(std::move(*item))) return;
    }
  }

  bounded_queue<Item> queue_;
  std::mutex failure_mutex_;
  std::exception_ptr failure_;
  std::jthread thread_;  // the last member: it ends before the others
};

}  // namespace switchyard::offload
