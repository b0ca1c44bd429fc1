#pragma once

#include <switchyard/offload/store.hpp>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace support {

/// A store that reads from another one, records what is read, and fails, waits or lags on request. Every read first fills the place with
/// ones, NaN in any element, so that what is computed with a piece that has not arrived is seen. Reads are counted from 0, over all threads,
/// in the order in which they begin.
///
/// ```
/// support::failing_store failing(store);
/// failing.fail_read(3);        // the fourth read returns a sentence
/// failing.cut_short_piece(1, 5);
/// failing.hold();              // reads stop in the store until release()
/// failing.wait_for_reads(2);   // until two have begun
/// ```
template <switchyard::offload::expert_store Store>
class failing_store {
 public:
  explicit failing_store(Store& store) : store_(&store) {}
  failing_store(failing_store const&) = delete;
  failing_store& operator=(failing_store const&) = delete;

  /// The sentence that every read ends with that fails on request.
  static constexpr char const* sentence = "the store fails on request";

  /// Nothing is read.
  void fail_read(std::int64_t read) { set(faults_of_reads_, read, fault::fails); }
  void fail_piece(int layer, int expert) { set(faults_of_pieces_, std::pair(layer, expert), fault::fails); }
  /// The first half of the piece is there.
  void cut_short(std::int64_t read) { set(faults_of_reads_, read, fault::ends_early); }
  void cut_short_piece(int layer, int expert) { set(faults_of_pieces_, std::pair(layer, expert), fault::ends_early); }
  /// The read throws std::runtime_error(sentence), which no store may.
  void throw_read(std::int64_t read) { set(faults_of_reads_, read, fault::throws); }
  /// No fault from now on.
  void heal() {
    std::lock_guard const lock(mutex_);
    faults_of_reads_.clear();
    faults_of_pieces_.clear();
  }
  /// Every read takes this much longer.
  void delay(std::chrono::microseconds time) {
    std::lock_guard const lock(mutex_);
    delay_ = time;
  }
  /// Reads stop before they have read anything, until `release`.
  void hold() {
    std::lock_guard const lock(mutex_);
    held_ = true;
  }
  void release() {
    std::lock_guard const lock(mutex_);
    held_ = false;
    changed_.notify_all();
  }

  /// Waits until so many reads have begun; false where that takes more than ten seconds.
  bool wait_for_reads(std::int64_t count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(10),
                             [&] { return static_cast<std::int64_t>(begun_.size()) >= count; });
  }
  /// Layer and expert of every read that has begun, in that order.
  std::vector<std::pair<int, int>> reads() const {
    std::lock_guard const lock(mutex_);
    return begun_;
  }
  /// The most reads that were under way at the same time.
  int most_at_once() const {
    std::lock_guard const lock(mutex_);
    return most_at_once_;
  }

  int layers() const { return store_->layers(); }
  int experts() const { return store_->experts(); }
  std::int64_t piece_bytes() const { return store_->piece_bytes(); }

  std::string read(int layer, int expert, std::byte* place) {
    fault todo = fault::none;
    std::chrono::microseconds lag{};
    {
      std::unique_lock lock(mutex_);
      auto const number = static_cast<std::int64_t>(begun_.size());
      begun_.emplace_back(layer, expert);
      most_at_once_ = std::max(most_at_once_, ++under_way_);
      changed_.notify_all();
      changed_.wait(lock, [&] { return !held_; });
      if (auto const found = faults_of_pieces_.find({layer, expert}); found != faults_of_pieces_.end()) {
        todo = found->second;
      }
      if (auto const found = faults_of_reads_.find(number); found != faults_of_reads_.end()) todo = found->second;
      lag = delay_;
    }
    auto const bytes = static_cast<std::size_t>(piece_bytes());
    std::memset(place, 0xff, static_cast<std::size_t>(switchyard::offload::place_bytes(piece_bytes())));
    if (lag.count() > 0) std::this_thread::sleep_for(lag);
    std::string result = todo == fault::fails || todo == fault::throws ? sentence : store_->read(layer, expert, place);
    if (todo == fault::ends_early) {
      std::memset(place + bytes / 2, 0xff, bytes - bytes / 2);
      result = sentence;
    }
    {
      std::lock_guard const lock(mutex_);
      --under_way_;
      changed_.notify_all();
    }
    if (todo == fault::throws) throw std::runtime_error(sentence);
    return result;
  }

 private:
  enum class fault { none, fails, ends_early, throws };

  template <class Key>
  void set(std::map<Key, fault>& faults, Key key, fault value) {
    std::lock_guard const lock(mutex_);
    faults[key] = value;
  }

  Store* store_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::int64_t, fault> faults_of_reads_;
  std::map<std::pair<int, int>, fault> faults_of_pieces_;
  std::vector<std::pair<int, int>> begun_;
  std::chrono::microseconds delay_{};
  int under_way_ = 0, most_at_once_ = 0;
  bool held_ = false;
};

}  // namespace support
