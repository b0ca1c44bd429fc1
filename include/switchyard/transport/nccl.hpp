#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/transport/transport.hpp>

#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#if NCCL_VERSION_CODE < 21800
#error "switchyard: transport::nccl needs NCCL 2.18 or newer (ncclCommSplit)."
#endif

namespace switchyard::transport {

namespace detail {

inline void check_cuda(char const* call, cudaError_t code) {
  if (code == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // the sentence tells it; later calls do not report it again
  fail(std::string("transport::nccl, ") + call, "cudaSuccess",
       std::string(cudaGetErrorName(code)) + " (" + cudaGetErrorString(code) + ")");
}

/// Host memory that a device reads and writes.
template <class T>
struct pinned_allocator {
  using value_type = T;

  pinned_allocator() = default;
  template <class U>
  pinned_allocator(pinned_allocator<U> const&) {}

  T* allocate(std::size_t count) {
    void* memory = nullptr;
    check_cuda("cudaHostAlloc (pinned memory)", cudaHostAlloc(&memory, count * sizeof(T), cudaHostAllocPortable));
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, std::size_t) noexcept { static_cast<void>(cudaFreeHost(memory)); }
  template <class U>
  bool operator==(pinned_allocator<U> const&) const {
    return true;
  }
};

}  // namespace detail

/// Messages by NCCL, between devices: those of one process, a thread each, or of several. A batch is a group of `ncclSend` and `ncclRecv` on a
/// stream of the transport's. Messages stand in memory of the device, or in pinned memory of the host.
///
/// NCCL has no tags and no message out of turn, so ranks begin their batches in one order, with the same bytes on both sides, and a failure
/// is told by somebody else: an object with `tell_failure` and `failure` as a transport has them, a `notice_board` or a `transport::mpi`.
/// Without one a rank learns that another has failed by NCCL's own error, where NCCL sees one, or by its time-out.
class nccl {
 public:
  static constexpr std::string_view name = "nccl";
  static constexpr bool any_length = false, any_order = false, follows_streams = true;
  template <class T>
  using allocator = detail::pinned_allocator<T>;

  /// All ranks of `communicator` make one together, each with its device current, and wait here until all have: what connects devices is
  /// made now, so that no later call of NCCL waits for another rank. The transport has a communicator of its own; that of the caller may
  /// go. Throws `error` where NCCL or CUDA says no.
  explicit nccl(ncclComm_t communicator) {
    check("ncclCommUserRank", ncclCommUserRank(communicator, &rank_), communicator);
    check("ncclCommCount", ncclCommCount(communicator, &ranks_), communicator);
    check("ncclCommSplit", ncclCommSplit(communicator, 0, rank_, &communicator_.handle, nullptr), communicator);
    int least = 0, most = 0;
    check_cuda("cudaDeviceGetStreamPriorityRange", cudaDeviceGetStreamPriorityRange(&least, &most));
    check_cuda("cudaStreamCreate", cudaStreamCreateWithPriority(&stream_.handle, cudaStreamNonBlocking, most));
    batches_.resize(batches_at_first);
    for (batch& b : batches_) prepare(b);
    connect();
  }
  /// The same; `notices` has `tell_failure(text)` and `failure()`, and stays as long as the transport.
  template <class Notices>
  nccl(ncclComm_t communicator, Notices& notices) : nccl(communicator) {
    notices_ = &notices;
    tell_ = [](void* to, std::string_view text) { static_cast<Notices*>(to)->tell_failure(text); };
    heard_ = [](void* from) -> failure_notice { return static_cast<Notices*>(from)->failure(); };
  }
  nccl(nccl const&) = delete;
  nccl& operator=(nccl const&) = delete;
  /// All ranks together, unless there was a failure.
  ~nccl() {
    if (open_ > 0) abandon();
  }

  int rank() const { return rank_; }
  int ranks() const { return ranks_; }

  /// What is begun from now on comes behind all that is on `stream` now.
  void follow(cudaStream_t stream) {
    check_cuda("cudaEventRecord", cudaEventRecord(before_.handle, stream));
    check_cuda("cudaStreamWaitEvent", cudaStreamWaitEvent(stream_.handle, before_.handle, 0));
  }

  void start(int tag, std::span<message const> sends, std::span<message const> receives) {
    if (communicator_.handle == nullptr) {
      fail("transport::nccl, start", "a transport without a failure", "one that was abandoned");
    }
    if (sends.empty() && receives.empty()) return;
    if (open_ == batches_.size()) prepare(batches_.emplace_back());
    batch& now = batches_[open_];
    now.tag = tag;
    now.receives.clear();
    for (message const& m : receives) now.receives.push_back({m.rank, marked(m)});
    check("ncclGroupStart", ncclGroupStart());
    ncclResult_t result = ncclSuccess;
    auto const add = [&](ncclResult_t of_call) { result = result == ncclSuccess ? of_call : result; };
    for (message const& m : receives) {
      add(ncclRecv(m.data, static_cast<std::size_t>(m.bytes), ncclInt8, m.rank, communicator_.handle, stream_.handle));
    }
    for (message const& m : sends) {
      add(ncclSend(m.data, static_cast<std::size_t>(m.bytes), ncclInt8, m.rank, communicator_.handle, stream_.handle));
    }
    add(ncclGroupEnd());  // always, or the next group would belong to this one
    check("ncclSend and ncclRecv", result);
    check_cuda("cudaEventRecord", cudaEventRecord(now.through.handle, stream_.handle));
    ++open_;
  }

  bool done(int tag) {
    bool all = true;
    for (std::size_t i = 0; i < open_;) {
      if (batches_[i].tag == tag && is_through(batches_[i])) {
        // It stays, behind those that are open, for another batch to come.
        std::rotate(batches_.begin() + static_cast<std::ptrdiff_t>(i),
                    batches_.begin() + static_cast<std::ptrdiff_t>(i) + 1,
                    batches_.begin() + static_cast<std::ptrdiff_t>(open_));
        --open_;
      } else {
        all = all && batches_[i].tag != tag;
        ++i;
      }
    }
    return all;
  }

  /// Of messages to host memory; NCCL does not tell whose message to a device has not come.
  int missing(int tag) const {
    int lowest = -1;
    for (std::size_t i = 0; i < open_; ++i) {
      if (batches_[i].tag != tag) continue;
      for (receive const& r : batches_[i].receives) {
        if (r.marked.empty() || (lowest >= 0 && r.rank >= lowest)) continue;
        bool has_come = false;
        for (std::byte const volatile& b : r.marked) has_come = has_come || b != mark;
        if (!has_come) lowest = r.rank;
      }
    }
    return lowest;
  }

  /// Nothing of this transport reads or writes memory any more when this returns.
  void abandon() {
    if (communicator_.handle != nullptr) ncclCommAbort(std::exchange(communicator_.handle, nullptr));
    static_cast<void>(cudaStreamSynchronize(stream_.handle));
    open_ = 0;
  }

  void tell_failure(std::string_view text) {
    if (notices_ != nullptr) tell_(notices_, text);
  }
  failure_notice failure() { return notices_ != nullptr ? heard_(notices_) : failure_notice{}; }

 private:
  // What tells a message to host memory that has not come: so many of its first bytes are all this.
  static constexpr std::byte mark{0xff};
  static constexpr std::int64_t marked_bytes = 64;
  static constexpr std::size_t batches_at_first = 64;

  struct owned_communicator {
    ncclComm_t handle = nullptr;
    bool connected = false;
    ~owned_communicator() {
      if (handle != nullptr) connected ? ncclCommDestroy(handle) : ncclCommAbort(handle);
    }
  };
  struct owned_stream {
    cudaStream_t handle = nullptr;
    ~owned_stream() {
      if (handle != nullptr) static_cast<void>(cudaStreamDestroy(handle));
    }
  };
  struct event {
    cudaEvent_t handle = nullptr;
    event() { detail::check_cuda("cudaEventCreate", cudaEventCreateWithFlags(&handle, cudaEventDisableTiming)); }
    event(event&& other) noexcept : handle(std::exchange(other.handle, nullptr)) {}
    event& operator=(event&& other) noexcept {
      std::swap(handle, other.handle);
      return *this;
    }
    ~event() {
      if (handle != nullptr) static_cast<void>(cudaEventDestroy(handle));
    }
  };
  struct receive {
    int rank;
    std::span<std::byte const> marked;  // nothing, where it goes to a device
  };
  struct batch {
    int tag = 0;
    event through;
    std::vector<receive> receives;
  };

  void prepare(batch& b) const { b.receives.reserve(static_cast<std::size_t>(ranks_)); }

  /// Marks the room of a message, where the host can.
  static std::span<std::byte const> marked(message const& m) {
    cudaPointerAttributes attributes{};
    detail::check_cuda("cudaPointerGetAttributes", cudaPointerGetAttributes(&attributes, m.data));
    if (attributes.type == cudaMemoryTypeDevice) return {};
    auto const count = static_cast<std::size_t>(std::min(m.bytes, marked_bytes));
    std::memset(m.data, std::to_integer<int>(mark), count);
    return {static_cast<std::byte const*>(m.data), count};
  }

  /// A message from each rank to each other one.
  void connect() {
    auto const all = static_cast<std::size_t>(ranks_);
    std::vector<std::int64_t, allocator<std::int64_t>> mine(all, rank_), others(all, -1);
    std::vector<message> sends, receives;
    for (int r = 0; r < ranks_; ++r) {
      if (r == rank_) continue;
      sends.push_back({r, &mine[static_cast<std::size_t>(r)], sizeof(std::int64_t)});
      receives.push_back({r, &others[static_cast<std::size_t>(r)], sizeof(std::int64_t)});
    }
    start(0, sends, receives);
    while (!done(0)) std::this_thread::yield();
    communicator_.connected = true;
  }

  bool is_through(batch const& b) {
    cudaError_t const code = cudaEventQuery(b.through.handle);
    if (code == cudaSuccess) return true;
    ncclResult_t state = ncclSuccess;
    check("ncclCommGetAsyncError", ncclCommGetAsyncError(communicator_.handle, &state));
    if (state != ncclSuccess && failure().rank >= 0) return false;  // what `failure` tells was first
    check("an operation", state);
    if (code != cudaErrorNotReady) detail::check_cuda("an operation", code);
    static_cast<void>(cudaGetLastError());  // not ready is no error of the program's
    return false;
  }

  static void check_cuda(char const* call, cudaError_t code) { detail::check_cuda(call, code); }
  void check(char const* call, ncclResult_t result) const { check(call, result, communicator_.handle); }
  static void check(char const* call, ncclResult_t result, ncclComm_t communicator) {
    if (result == ncclSuccess) return;
    char const* const said = ncclGetLastError(communicator);
    std::string got = ncclGetErrorString(result);
    if (said != nullptr && *said != '\0') got += std::string(", ") + said;
    fail(std::string("transport::nccl, ") + call, "ncclSuccess", got);
  }

  int rank_ = 0, ranks_ = 1;
  owned_communicator communicator_;
  owned_stream stream_;
  event before_;
  std::vector<batch> batches_;  // open ones first, in the order in which they were begun
  std::size_t open_ = 0;
  void* notices_ = nullptr;
  void (*tell_)(void*, std::string_view) = nullptr;
  failure_notice (*heard_)(void*) = nullptr;
};

static_assert(transport_policy<nccl>);

}  // namespace switchyard::transport
