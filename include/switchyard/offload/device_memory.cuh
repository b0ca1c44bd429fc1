#pragma once

#include <switchyard/backend/cuda/launch.cuh>
#include <switchyard/core/error.hpp>
#include <switchyard/offload/cache.hpp>
#include <switchyard/offload/store.hpp>

#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

/// What a cache on a GPU is made of: `expert_cache<Store, Policy, device_memory>`.
namespace switchyard::offload {

/// Host memory that a GPU copies from by itself, while kernels run and nobody waits: what a store in memory should stand in.
class pinned_memory {
 public:
  pinned_memory() = default;
  /// New memory at a multiple of `block_bytes`, which takes the system long. Throws `cuda_error` where there is not so much.
  explicit pinned_memory(std::size_t bytes) {
    void* first = nullptr;
    cuda::check("cudaHostAlloc (pinned memory)", cudaHostAlloc(&first, bytes + block_bytes, cudaHostAllocDefault));
    allocated_ = first;
    std::size_t const behind = reinterpret_cast<std::uintptr_t>(first) % block_bytes;
    bytes_ = {static_cast<std::byte*>(first) + (behind == 0 ? 0 : block_bytes - behind), bytes};
  }
  /// Pins memory that is there already, for as long as the result is; it has to go before that memory does.
  static pinned_memory of(std::span<std::byte> memory) {
    pinned_memory result;
    cuda::check("cudaHostRegister (pinned memory)",
                cudaHostRegister(memory.data(), memory.size(), cudaHostRegisterDefault));
    result.bytes_ = memory;
    return result;
  }
  pinned_memory(pinned_memory&& other) noexcept { *this = std::move(other); }
  pinned_memory& operator=(pinned_memory&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    std::swap(allocated_, other.allocated_);
    return *this;
  }
  ~pinned_memory() {
    if (allocated_ != nullptr) {
      static_cast<void>(cudaFreeHost(allocated_));
    } else if (bytes_.data() != nullptr) {
      static_cast<void>(cudaHostUnregister(bytes_.data()));
    }
  }

  std::byte* data() const { return bytes_.data(); }
  std::size_t size() const { return bytes_.size(); }

 private:
  std::span<std::byte> bytes_;
  void* allocated_ = nullptr;  // null: it is another's memory, or none
};

/// The places of a cache on the GPU that is current where the cache is made: one allocation of device memory, and nothing else there.
///
/// Each reader has a stream. It enqueues a copy into a place behind the last use of that place, so it waits for no kernel; a piece counts
/// as read when its copy is enqueued, and the kernels that need it come behind that copy. From a store in memory pieces are copied where
/// they stand. Where that memory is not pinned, the reader's thread waits for each copy, which is slower; all else is the same. From other
/// stores a piece is read into a pinned buffer of the reader, one place long, and the reader waits until it has been copied.
class device_memory {
 public:
  /// Throws `cuda_error` where the device has no room for the places.
  template <expert_store Store>
  device_memory(Store& store, int places, int readers)
      : bytes_of_place_(place_bytes(store.piece_bytes())), experts_(store.experts()), device_(current_device()) {
    void* first = nullptr;
    std::int64_t const bytes = bytes_of_place_ * places;
    cudaError_t const code = cudaMalloc(&first, static_cast<std::size_t>(bytes));
    if (code != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      raise(cuda_error(sentence("offload::expert_cache, budget_bytes",
                                std::to_string(bytes) + " bytes of free device memory (lower budget_bytes)",
                                std::string(cudaGetErrorName(code)) + " (" + cudaGetErrorString(code) + ")"),
                       code));
    }
    first_.reset(static_cast<std::byte*>(first));
    places_.resize(static_cast<std::size_t>(places));
    readers_.resize(static_cast<std::size_t>(std::max(readers, 0)));
    if constexpr (!store_in_memory<Store>) {
      for (reader& r : readers_) r.buffer = pinned_memory(static_cast<std::size_t>(bytes_of_place_));
    }
    std::size_t const experts = static_cast<std::size_t>(experts_);
    numbers_ = pinned_memory((experts + 1 + numbers_of_call * experts) * sizeof(std::int32_t));
    lists_.resize(2 * experts);
  }
  device_memory(device_memory const&) = delete;
  /// Waits for the kernels of the last call, and for copies.
  ~device_memory() {
    static_cast<void>(cudaEventSynchronize(last_call_));
    for (reader const& r : readers_) static_cast<void>(cudaStreamSynchronize(r.stream));
  }

  std::byte* place(int index) const { return first_.get() + index * bytes_of_place_; }
  int places() const { return static_cast<int>(places_.size()); }
  int device() const { return device_; }

  /// Puts a piece into a place, on the reader's thread; what went wrong, as of `expert_store`.
  template <expert_store Store>
  std::string load(Store& store, int layer, int expert, int index, int of_reader) {
    reader& r = readers_[static_cast<std::size_t>(of_reader)];
    place_events const& at = places_[static_cast<std::size_t>(index)];
    std::byte const* from = nullptr;
    if constexpr (store_in_memory<Store>) {
      from = store.at(layer, expert);
    } else {
      from = r.buffer.data();
      if (std::string wrong = store.read(layer, expert, r.buffer.data()); !wrong.empty()) return wrong;
    }
    std::string wrong = wrong_with("cudaSetDevice", cudaSetDevice(device_));
    for (cudaEvent_t const before : {at.used.handle, at.arrived.handle}) {  // what arrived need not have been used
      if (wrong.empty()) wrong = wrong_with("cudaStreamWaitEvent", cudaStreamWaitEvent(r.stream, before, 0));
    }
    if (wrong.empty()) {
      wrong = wrong_with("cudaMemcpyAsync",
                         cudaMemcpyAsync(place(index), from, static_cast<std::size_t>(store.piece_bytes()),
                                         cudaMemcpyHostToDevice, r.stream));
    }
    if (wrong.empty()) wrong = wrong_with("cudaEventRecord", cudaEventRecord(at.arrived, r.stream));
    if (wrong.empty() && !store_in_memory<Store>) {
      wrong = wrong_with("cudaStreamSynchronize", cudaStreamSynchronize(r.stream));
    }
    return wrong;
  }

 private:
  friend class device_call;

  /// Numbers that all batches of a call take at most, for each expert of a layer.
  static constexpr std::size_t numbers_of_call = 6;

  struct event {
    cudaEvent_t handle = nullptr;
    event() { cuda::check("cudaEventCreate", cudaEventCreateWithFlags(&handle, cudaEventDisableTiming)); }
    event(event&& other) noexcept : handle(std::exchange(other.handle, nullptr)) {}
    ~event() {
      if (handle != nullptr) static_cast<void>(cudaEventDestroy(handle));
    }
    operator cudaEvent_t() const { return handle; }
  };
  struct place_events {
    event arrived, used;
  };
  struct stream {
    cudaStream_t handle = nullptr;
    stream() { cuda::check("cudaStreamCreate", cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking)); }
    stream(stream&& other) noexcept : handle(std::exchange(other.handle, nullptr)) {}
    ~stream() {
      if (handle != nullptr) static_cast<void>(cudaStreamDestroy(handle));
    }
    operator cudaStream_t() const { return handle; }
  };
  struct reader {
    struct stream stream;
    pinned_memory buffer;
  };
  struct free_on_device {
    void operator()(std::byte* first) const { static_cast<void>(cudaFree(first)); }
  };

  static int current_device() {
    int device = 0;
    cuda::check("cudaGetDevice", cudaGetDevice(&device));
    return device;
  }
  static std::string wrong_with(char const* what, cudaError_t code) {
    if (code == cudaSuccess) return {};
    static_cast<void>(cudaGetLastError());
    return std::string(what) + ": " + cudaGetErrorName(code) + " (" + cudaGetErrorString(code) + ")";
  }

  std::int64_t bytes_of_place_;
  int experts_, device_;
  std::unique_ptr<std::byte, free_on_device> first_;
  std::vector<place_events> places_;
  std::vector<reader> readers_;
  pinned_memory numbers_;            // [experts + 1] that a call reads back, then what its batches write
  std::vector<std::int32_t> lists_;  // [2, experts], of the call that runs
  event read_back_, last_call_;
  std::atomic<bool> runs_ = false;
};

/// The use of the places by one call, on a stream. Calls follow each other on the device, whatever their streams are, so that what one
/// call has left on the host can be overwritten by the next one once its stream has been waited for.
class device_call {
 public:
  static constexpr int numbers_of_batches = static_cast<int>(device_memory::numbers_of_call);

  /// Throws `error` where another call runs, or for another device than that of the places.
  device_call(device_memory& memory, cudaStream_t stream) : memory_(memory), stream_(stream) {
    if (int const device = device_memory::current_device(); device != memory.device_) {
      fail("layer::forward, weights.experts", "the device " + std::to_string(device) + " of the call",
           "a cache on device " + std::to_string(memory.device_));
    }
    if (memory.runs_.exchange(true)) {
      fail("layer::forward, weights.experts", "a cache that no other call uses at the moment (one call at a time)",
           "one that a call uses");
    }
    free_ = numbers() + memory.experts_ + 1;
  }
  device_call(device_call const&) = delete;
  /// What comes later on other streams of calls waits for all that this one has enqueued. An error of the device stays for the next call.
  ~device_call() {
    static_cast<void>(cudaEventRecord(memory_.last_call_, stream_));
    memory_.runs_ = false;
  }

  /// Numbers of the device on the host, at most one more than there are experts: waits for the stream.
  std::int32_t const* read_back(std::int32_t const* from, int count) {
    cuda::check("cudaStreamWaitEvent", cudaStreamWaitEvent(stream_, memory_.last_call_, 0));
    cuda::check("cudaMemcpyAsync", cudaMemcpyAsync(numbers(), from, static_cast<std::size_t>(count) * sizeof *from,
                                                   cudaMemcpyDeviceToHost, stream_));
    cuda::check("cudaEventRecord", cudaEventRecord(memory_.read_back_, stream_));
    cuda::check("cudaEventSynchronize", cudaEventSynchronize(memory_.read_back_));
    return numbers();
  }

  // Lists on the host, [experts] each.
  std::int32_t* experts() const { return memory_.lists_.data(); }
  std::int32_t* places() const { return memory_.lists_.data() + memory_.experts_; }
  int all_places() const { return memory_.places(); }

  /// Numbers on the host for a batch, which stay as they are until the call has run.
  std::int32_t* take_numbers(int count) { return std::exchange(free_, free_ + count); }

  /// The use of what stands in the first `places`. What is enqueued meanwhile comes behind the copies into these places, and later copies
  /// into them come behind it. An error of the device at the end stays for the next call.
  class batch {
   public:
    batch(device_call const& of, int count) : of_(of), count_(count) {
      for (int i = 0; i < count; ++i) {
        cuda::check("cudaStreamWaitEvent", cudaStreamWaitEvent(of.stream_, of.events_of(i).arrived, 0));
      }
    }
    batch(batch const&) = delete;
    ~batch() {
      for (int i = 0; i < count_; ++i) static_cast<void>(cudaEventRecord(of_.events_of(i).used, of_.stream_));
    }

   private:
    device_call const& of_;
    int count_;
  };

 private:
  std::int32_t* numbers() const { return reinterpret_cast<std::int32_t*>(memory_.numbers_.data()); }
  device_memory::place_events const& events_of(int index) const {
    return memory_.places_[static_cast<std::size_t>(places()[index])];
  }

  device_memory& memory_;
  cudaStream_t stream_;
  std::int32_t* free_;
};

}  // namespace switchyard::offload
