#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/transport/notice_board.hpp>

#include <cuda_runtime.h>
#include <nccl.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace support {

/// What has to be true on a rank, of which Catch2 knows only one.
inline void expect(bool holds, std::string const& what) {
  if (!holds) throw std::runtime_error(what);
}
inline void expect_cuda(cudaError_t code) { expect(code == cudaSuccess, cudaGetErrorString(code)); }
inline void expect_nccl(ncclResult_t result) { expect(result == ncclSuccess, ncclGetErrorString(result)); }

/// Whether each of so many ranks can have a device. Says so if not; CTest then counts the test as skipped.
inline bool have_devices(int ranks) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess) devices = 0;
  static_cast<void>(cudaGetLastError());
  if (devices < ranks) std::printf("skipped: no CUDA device for each of %d ranks (there are %d)\n", ranks, devices);
  return devices >= ranks;
}

/// A rank's communicator, on the device with its number.
class communicator {
 public:
  communicator(ncclUniqueId const& id, int rank, int ranks) {
    expect_cuda(cudaSetDevice(rank));
    expect_nccl(ncclCommInitRank(&handle_, ranks, id, rank));
  }
  communicator(communicator const&) = delete;
  ~communicator() { ncclCommDestroy(handle_); }
  operator ncclComm_t() const { return handle_; }

 private:
  ncclComm_t handle_ = nullptr;
};

/// Where the ranks of a process tell their failures.
class board_memory {
 public:
  explicit board_memory(int ranks) : lines_(switchyard::transport::notice_board::bytes(ranks) / sizeof(line)) {}
  void* data() { return lines_.data(); }

 private:
  struct alignas(switchyard::transport::notice_board::alignment) line {
    char bytes[switchyard::transport::notice_board::alignment];
  };
  std::vector<line> lines_;
};

/// Runs `of_rank(id, rank)` on a thread for each rank. Says what they have thrown, or nothing.
inline std::string on_threads(int ranks, std::function<void(ncclUniqueId const&, int)> const& of_rank) {
  ncclUniqueId id;
  expect_nccl(ncclGetUniqueId(&id));
  std::vector<std::string> thrown(static_cast<std::size_t>(ranks));
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      try {
        of_rank(id, r);
      } catch (std::exception const& e) {
        thrown[static_cast<std::size_t>(r)] = "rank " + std::to_string(r) + ": " + e.what() + "\n";
      }
    });
  }
  std::string all;
  for (int r = 0; r < ranks; ++r) {
    threads[static_cast<std::size_t>(r)].join();
    all += thrown[static_cast<std::size_t>(r)];
  }
  return all;
}

/// Whether `holds()` comes true in time.
template <class Condition>
bool comes_true(Condition const& holds, double seconds = 30.0) {
  auto const begin = std::chrono::steady_clock::now();
  while (!holds()) {
    if (std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() > seconds) return false;
    std::this_thread::yield();
  }
  return true;
}

}  // namespace support
