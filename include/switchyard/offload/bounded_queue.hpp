#pragma once

#include <switchyard/core/error.hpp>

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

namespace switchyard::offload {

/// A queue between threads that takes at most so many items. It ends in one of two ways, after which nobody waits any more: `close`, after
/// which the items that it has still come out, and `cancel`, which throws them away. Any number of threads may call anything.
template <class Item>
class bounded_queue {
 public:
  /// Throws `error` for a capacity of 0.
  explicit bounded_queue(std::size_t capacity) : capacity_(capacity) {
    if (capacity == 0) fail("offload::bounded_queue, capacity", "at least 1", "0");
  }
  bounded_queue(bounded_queue const&) = delete;
  bounded_queue& operator=(bounded_queue const&) = delete;

  /// Waits for room. False where the queue has ended: the item is not taken then.
  bool push(Item item) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return closed_ || items_.size() < capacity_; });
    if (closed_) return false;
    items_.push_back(std::move(item));
    changed_.notify_all();
    return true;
  }

  /// Waits for an item. Nothing where the queue has ended and has none left.
  std::optional<Item> pop() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return closed_ || !items_.empty(); });
    if (items_.empty()) return std::nullopt;
    std::optional<Item> item(std::move(items_.front()));
    items_.pop_front();
    changed_.notify_all();
    return item;
  }

  /// No item comes after those that are there.
  void close() {
    std::lock_guard const lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }
  /// No item comes any more.
  void cancel() {
    std::deque<Item> thrown_away;  // outside of the lock
    std::lock_guard const lock(mutex_);
    closed_ = true;
    thrown_away.swap(items_);
    changed_.notify_all();
  }

  std::size_t capacity() const { return capacity_; }
  /// Items that wait to be popped.
  std::size_t size() const {
    std::lock_guard const lock(mutex_);
    return items_.size();
  }

 private:
  std::size_t const capacity_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Item> items_;
  bool closed_ = false;
};

}  // namespace switchyard::offload
