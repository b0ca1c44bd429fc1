#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/offload/block_memory.hpp>
#include <switchyard/offload/measures.hpp>
#include <switchyard/offload/piece.hpp>
#include <switchyard/offload/policies.hpp>
#include <switchyard/offload/residency.hpp>
#include <switchyard/offload/store.hpp>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace switchyard::offload {

/// The places of a cache for the CPU, in ordinary memory that is there from the begin. Every kind of memory has these functions; see
/// offload/device_memory.cuh.
class host_memory {
 public:
  /// `readers` are the threads that will load.
  template <expert_store Store>
  host_memory(Store& store, int places, [[maybe_unused]] int readers)
      : bytes_of_place_(place_bytes(store.piece_bytes())), first_(take_blocks(bytes_of_place_ * places)) {
    // Else reads wait for the system's pages.
    std::memset(first_.get(), 0, static_cast<std::size_t>(bytes_of_place_ * places));
  }

  std::byte* place(int index) const { return first_.get() + index * bytes_of_place_; }
  /// Puts a piece into a place, on the reader's thread; what went wrong, as of `expert_store`.
  template <expert_store Store>
  std::string load(Store& store, int layer, int expert, int index, int) {
    return store.read(layer, expert, place(index));
  }

 private:
  std::int64_t bytes_of_place_;
  block_memory first_;
};

/// A cache as layers know it, whatever its store and its policy are. A call begins, takes experts in batches until there are no more,
/// and ends; `resident_call` is how.
template <class Memory>
class expert_source {
 public:
  virtual int layers() const = 0;
  virtual int experts() const = 0;
  virtual std::int64_t piece_bytes() const = 0;
  virtual std::int64_t bytes_of_place() const = 0;
  virtual std::string_view format() const = 0;  // `piece<Layer>::format()`, empty where the store does not know it
  virtual Memory& memory() = 0;

  virtual void begin(int layer, std::span<std::int32_t const> experts) = 0;
  /// Writes which experts are ready, and in which places they stand, and returns how many; waits for one at least. None: the call has
  /// had all. The batch before is done with.
  virtual int take(std::int32_t* experts, std::int32_t* places) = 0;
  virtual void end() = 0;

 protected:
  ~expert_source() = default;
};

/// The experts of one layer in a cache: what stands in `.weights.experts`. `first` is the number there of the layer's expert 0.
template <class Memory>
struct layer_experts {
  expert_source<Memory>* cache = nullptr;
  int layer = 0, first = 0;

  constexpr layer_experts from(int expert) const { return {cache, layer, first + expert}; }

  template <class Other>
  requires(!std::is_same_v<Other, Memory>) constexpr operator layer_experts<Other>() const {
    static_assert(
        sizeof(layer_experts<Other>) == 0,
        "switchyard: this cache has its places in other memory than the layer's backend reads. The third argument of "
        "expert_cache is offload::device_memory for backend::cuda and backend::hopper, offload::host_memory for "
        "backend::cpu.");
    return {};
  }

  /// Throws `error` where these are not the experts of a layer of this type.
  template <class Layer>
  void check() const {
    if (cache == nullptr) fail("layer::forward, weights.experts", "the layer of a cache, cache.layer(number)", "null");
    if (first + Layer::dims.experts != cache->experts()) {
      fail("layer::forward, weights.experts",
           std::to_string(first + Layer::dims.experts) + " experts in a layer of the store",
           std::to_string(cache->experts()));
    }
    if (!cache->format().empty() && cache->format() != piece<Layer>::format()) {
      fail("layer::forward, weights.experts", "pieces of " + std::string(piece<Layer>::format()),
           std::string(cache->format()));
    }
    if (cache->piece_bytes() != piece<Layer>::bytes) {
      fail("layer::forward, weights.experts",
           "pieces of " + std::to_string(piece<Layer>::bytes) +
               " bytes in the store (offload::piece<Layer> says what they have)",
           std::to_string(cache->piece_bytes()));
    }
  }
};

/// The use of a cache by one call, which ends when this goes, also by an exception.
template <class Memory>
class resident_call {
 public:
  /// `experts` have rows: their numbers in the cache, in ascending order.
  resident_call(layer_experts<Memory> const& of, std::span<std::int32_t const> experts) : cache_(*of.cache) {
    cache_.begin(of.layer, experts);
  }
  resident_call(resident_call const&) = delete;
  ~resident_call() { cache_.end(); }

  int take(std::int32_t* experts, std::int32_t* places) { return cache_.take(experts, places); }

 private:
  expert_source<Memory>& cache_;
};

/// How a cache is made.
template <class Policy>
struct cache_options {
  std::int64_t budget_bytes = 0;  ///< of all resident experts, of all layers; at least a place of one
  int readers = 2;                ///< threads that read the store
  std::int64_t horizon = 256;     ///< the most calls that are expected at a time
  Policy policy = {};
  std::vector<double> frequencies = {};  ///< [layers, experts], for policies that read them; empty: none
  std::int64_t record_calls = 0;         ///< so many calls are measured one by one
};

/// Keeps as many experts in memory as a budget allows, and reads the others from a store when calls need them, or before.
///
/// A layer of `backend::offloaded` takes its experts from here, and waits in `forward` for those that are not resident: it computes what is
/// there first. `expect` says what calls to come need; readers then fetch it ahead. What was expected and is not needed costs a read;
/// what is needed and was not expected is read when it is needed. No result depends on either.
///
/// A cache serves one call at a time, of any of its layers. `expect`, `cancel` and `measure` may be called by other threads meanwhile. The
/// memory of all places, and all tables, are taken by the constructor: a call allocates nothing. The budget is never exceeded, for a piece
/// that is being read takes up its place.
///
/// Where the store fails, the call that needs the piece throws `error` with its sentence, and nothing is computed of what has been read in
/// part; the cache serves the next call. A piece that was read ahead is tried again when a call needs it.
template <expert_store Store, residency_policy Policy = by_next_use, class Memory = host_memory>
class expert_cache final : public expert_source<Memory> {
 public:
  /// `store` outlives the cache. Throws `error` for a budget below one expert.
  expert_cache(Store& store, cache_options<Policy> options)
      : store_(store),
        bytes_of_place_(place_bytes(store.piece_bytes())),
        record_calls_(options.record_calls),
        format_(format_of(store)),
        residency_(store.layers(), store.experts(), places_of(store, options.budget_bytes), options.horizon,
                   std::move(options.policy), std::move(options.frequencies)),
        memory_(store, residency_.places(), options.readers) {
    if (options.readers < 1) fail("offload::expert_cache, readers", "at least 1", std::to_string(options.readers));
    used_.resize(static_cast<std::size_t>(residency_.places()));
    reset_measures();
    readers_.reserve(static_cast<std::size_t>(options.readers));
    for (int r = 0; r < options.readers; ++r) readers_.emplace_back([this, r] { read_pieces(r); });
  }
  expert_cache(expert_cache const&) = delete;
  /// Waits for reads that have begun.
  ~expert_cache() {
    {
      std::lock_guard const lock(mutex_);
      stops_ = true;
    }
    to_read_.notify_all();
    for (std::thread& reader : readers_) reader.join();
  }

  /// What stands in `.weights.experts` of a layer.
  layer_experts<Memory> layer(int number) {
    if (number < 0 || number >= layers()) {
      fail("offload::expert_cache, layer", "0 to " + std::to_string(layers() - 1), std::to_string(number));
    }
    return {this, number, 0};
  }

  /// The next call of a layer, after those that are expected already, will probably need these experts. A call that begins is the first
  /// expected one of its layer; those expected before it are forgotten. Throws `error` for an expert that there is not, and where
  /// more calls are expected than `horizon`.
  void expect(int layer, std::span<std::int32_t const> experts) {
    if (layer < 0 || layer >= layers()) {
      fail("offload::expert_cache::expect, layer", "0 to " + std::to_string(layers() - 1), std::to_string(layer));
    }
    for (std::int32_t e : experts) {
      if (e < 0 || e >= this->experts()) {
        fail("offload::expert_cache::expect, experts", "0 to " + std::to_string(this->experts() - 1),
             std::to_string(e));
      }
    }
    {
      std::lock_guard const lock(mutex_);
      if (residency_.room_to_expect() > 0) {
        residency_.expect(layer, experts);
        to_read_.notify_all();
        return;
      }
    }
    fail("offload::expert_cache::expect", "fewer calls than the horizon, or a longer one (options.horizon)",
         "one more than there is room for");
  }
  /// How many more calls may be expected.
  std::int64_t room_to_expect() const {
    std::lock_guard const lock(mutex_);
    return residency_.room_to_expect();
  }
  /// Nothing is expected any more. What is on its way still arrives.
  void forget_expected() {
    std::lock_guard const lock(mutex_);
    residency_.forget_expected();
  }

  /// The call that runs throws `error` as soon as it would take more experts, and so does every later one until `resume`.
  void cancel() {
    {
      std::lock_guard const lock(mutex_);
      cancelled_ = true;
    }
    arrived_.notify_all();
  }
  void resume() {
    std::lock_guard const lock(mutex_);
    cancelled_ = false;
  }

  /// Whether an expert is resident, and not just on its way.
  bool is_resident(int layer, int expert) const {
    std::lock_guard const lock(mutex_);
    auto const found = residency_.state_of(layer, expert);
    return found == pieces::state::ready || found == pieces::state::taken;
  }

  cache_measures measure() const {
    std::lock_guard const lock(mutex_);
    cache_measures result = measures_;
    result.resident_bytes = residency_.used_places() * bytes_of_place_;
    return result;
  }
  /// Begins to count anew, what is resident aside.
  void reset_measures() {
    std::lock_guard const lock(mutex_);
    measures_ = {};
    measures_.budget_bytes = residency_.places() * bytes_of_place_;
    measures_.place_bytes = bytes_of_place_;
    measures_.piece_bytes = store_.piece_bytes();
    measures_.peak_bytes = residency_.used_places() * bytes_of_place_;
    measures_.layers.resize(static_cast<std::size_t>(layers()));
    measures_.calls.reserve(static_cast<std::size_t>(record_calls_));
    made_ = clock::now();
  }

  int layers() const override { return residency_.layers(); }
  int experts() const override { return residency_.experts(); }
  std::int64_t piece_bytes() const override { return store_.piece_bytes(); }
  std::int64_t bytes_of_place() const override { return bytes_of_place_; }
  std::string_view format() const override { return format_; }
  int places() const { return residency_.places(); }
  Memory& memory() override { return memory_; }

  void begin(int layer, std::span<std::int32_t const> experts) override {
    int other = 0;
    {
      std::lock_guard const lock(mutex_);
      other = residency_.layer_of_call();
      if (!runs_) {
        runs_ = true;
        begin_call(layer, experts);
        if (of_call_.hits < of_call_.needed || residency_.expects_calls()) to_read_.notify_all();
        return;
      }
    }
    fail("layer::forward, weights.experts", "a cache that no other call uses at the moment (one call at a time)",
         "one that a call of layer " + std::to_string(other) + " uses");
  }

  int take(std::int32_t* experts, std::int32_t* places) override {
    std::unique_lock lock(mutex_);
    finish_batch();
    int count = 0;
    clock::time_point const before = clock::now();
    for (;;) {
      if (cancelled_ || !failure_.empty()) break;
      residency_.take([&](int expert, int place) {
        experts[count] = expert;
        places[count] = place;
        used_[static_cast<std::size_t>(place)] = 1;
        ++count;
      });
      if (count > 0 || residency_.is_over()) break;
      arrived_.wait(lock);
    }
    double const waited = std::chrono::duration<double>(clock::now() - before).count();
    measures_.layers[static_cast<std::size_t>(of_call_.layer)].waiting_seconds += waited;
    of_call_.waiting_seconds += waited;
    if (!failure_.empty()) fail_read(lock);
    if (cancelled_) {
      lock.unlock();
      fail("layer::forward, weights.experts", "its experts", "expert_cache::cancel");
    }
    return count;
  }

  void end() override {
    std::lock_guard const lock(mutex_);
    finish_batch();
    residency_.end();
    failure_.clear();
    runs_ = false;
    of_call_.seconds = seconds_since_made() - of_call_.begin_seconds;
    of_call_.moved_bytes = measures_.moved_bytes;
    of_call_.resident_bytes = residency_.used_places() * bytes_of_place_;
    if (static_cast<std::int64_t>(measures_.calls.size()) < record_calls_) measures_.calls.push_back(of_call_);
  }

 private:
  using pieces = residency<Policy>;
  using clock = std::chrono::steady_clock;

  static std::string format_of(Store const& store) {
    if constexpr (requires { store.format(); }) {
      return std::string(store.format());
    } else {
      return {};
    }
  }
  static int places_of(Store const& store, std::int64_t budget_bytes) {
    std::int64_t const each = place_bytes(store.piece_bytes());
    if (budget_bytes < each) {
      fail("offload::expert_cache, budget_bytes", "at least " + std::to_string(each) + ", what one expert takes up",
           std::to_string(budget_bytes));
    }
    std::int64_t const all = std::int64_t{store.layers()} * store.experts(), fit = budget_bytes / each;
    return static_cast<int>(fit < all ? fit : all);
  }
  double seconds_since_made() const { return std::chrono::duration<double>(clock::now() - made_).count(); }

  void begin_call(int layer, std::span<std::int32_t const> experts) {
    layer_measures& m = measures_.layers[static_cast<std::size_t>(layer)];
    of_call_ = {};  // not with some members in braces: assigned in a template, nvcc 13.0 takes them for the first ones
    of_call_.layer = layer;
    of_call_.needed = static_cast<int>(experts.size());
    of_call_.begin_seconds = seconds_since_made();
    for (std::int32_t e : experts) {
      auto const found = residency_.state_of(layer, e);
      of_call_.hits += found == pieces::state::ready;
      of_call_.on_the_way += found == pieces::state::loading;
    }
    ++m.calls;
    m.needed += of_call_.needed;
    m.hits += of_call_.hits;
    m.on_the_way += of_call_.on_the_way;
    residency_.begin(layer, experts);
  }

  /// Gives back what `take` has handed out.
  void finish_batch() {
    if (residency_.finish_taken() == 0) return;
    if (!residency_.is_over() || residency_.expects_calls()) to_read_.notify_all();
  }

  [[noreturn]] void fail_read(std::unique_lock<std::mutex>& lock) {
    std::string const what = failure_;
    lock.unlock();
    fail("layer::forward, weights.experts",
         "expert " + std::to_string(failed_expert_) + " of layer " + std::to_string(failed_layer_) + " from its store",
         what);
  }

  std::string read(typename pieces::load const& next, int reader) {
#if defined(__cpp_exceptions)
    try {
      return memory_.load(store_, next.layer, next.expert, next.place, reader);
    } catch (std::exception const& thrown) {
      return thrown.what();
    } catch (...) {
      return "an exception of an unknown type";
    }
#else
    return memory_.load(store_, next.layer, next.expert, next.place, reader);
#endif
  }

  void read_pieces(int reader) {
    std::unique_lock lock(mutex_);
    for (;;) {
      std::optional<typename pieces::load> next;
      to_read_.wait(lock, [&] { return stops_ || (next = residency_.next_load()).has_value(); });
      if (stops_) return;
      std::uint8_t& used = used_[static_cast<std::size_t>(next->place)];
      measures_.unused_loads += used == 2;
      used = 2;  // until a call takes it
      std::int64_t const bytes = residency_.used_places() * bytes_of_place_;
      if (bytes > measures_.peak_bytes) measures_.peak_bytes = bytes;
      lock.unlock();
      std::string const wrong = read(*next, reader);
      lock.lock();
      if (wrong.empty()) {
        residency_.arrived(next->place);
        measures_.moved_bytes += store_.piece_bytes();
        ++measures_.layers[static_cast<std::size_t>(next->layer)].loads;
      } else {
        used_[static_cast<std::size_t>(next->place)] = 0;
        if (runs_ && next->layer == residency_.layer_of_call() && residency_.is_needed(next->expert)) {
          failure_ = wrong;
          failed_layer_ = next->layer;
          failed_expert_ = next->expert;
        }
        residency_.failed(next->place);
      }
      arrived_.notify_all();
      to_read_.notify_one();
    }
  }

  Store& store_;
  std::int64_t bytes_of_place_, record_calls_;
  std::string format_;
  mutable std::mutex mutex_;
  std::condition_variable to_read_, arrived_;
  pieces residency_;
  Memory memory_;
  std::vector<std::uint8_t> used_;  // [places] 0: nothing was read, 1: used by a call, 2: read and not used yet
  bool stops_ = false, cancelled_ = false, runs_ = false;
  std::string failure_;  // of what the present call needs
  int failed_layer_ = 0, failed_expert_ = 0;
  cache_measures measures_;
  call_measures of_call_;
  clock::time_point made_;
  std::vector<std::thread> readers_;
};

}  // namespace switchyard::offload
