#pragma once

#include <switchyard/core/error.hpp>

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error \
    "switchyard: backend::cuda needs compute capability 8.0 or newer. Set CMAKE_CUDA_ARCHITECTURES (nvcc: -arch) to 80 or more."
#endif

namespace switchyard {

/// What a call on a GPU needs besides its data.
struct cuda_context {
  cudaStream_t stream = nullptr;  ///< where the work is enqueued; null: CUDA's default stream
};

/// A CUDA call or kernel launch that failed.
class cuda_error : public error {
 public:
  cuda_error(std::string message, cudaError_t code) : error(std::move(message)), code_(code) {}
  cudaError_t code() const noexcept { return code_; }

 private:
  cudaError_t code_;
};

namespace cuda {

/// Shared memory that a block can have on every device (compute capability 8.6 and 8.9), and on the largest ones.
inline constexpr std::size_t least_shared_bytes = 99 * 1024, most_shared_bytes = 227 * 1024;

/// Throws `cuda_error` for a call that failed. Asks the device only now, so that a call that succeeds costs nothing.
[[noreturn]] inline void fail_cuda(char const* what, cudaError_t code, std::size_t shared_bytes) {
  static_cast<void>(cudaGetLastError());  // the sentence tells it; later calls do not report it again
  std::string expected = "cudaSuccess";
  std::string got = std::string(cudaGetErrorName(code)) + " (" + cudaGetErrorString(code) + ")";
  int device = 0, devices = 0, major = 0, minor = 0, most_shared = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    expected = "a CUDA device and its driver";
  } else if (cudaGetDevice(&device) == cudaSuccess &&
             cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
             cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
             cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess) {
    if (code == cudaErrorNoKernelImageForDevice || code == cudaErrorUnsupportedPtxVersion ||
        code == cudaErrorInvalidDeviceFunction) {
      expected = "a program compiled for this device (set CMAKE_CUDA_ARCHITECTURES to " + std::to_string(major) +
                 std::to_string(minor) + "), which has to be of compute capability 8.0 or newer";
      got = "compute capability " + std::to_string(major) + "." + std::to_string(minor) + ", " + got;
    } else if (shared_bytes > static_cast<std::size_t>(most_shared)) {
      expected = std::to_string(shared_bytes) + " bytes of shared memory per block";
      got = std::to_string(most_shared) + " bytes on this device";
    }
  }
  static_cast<void>(cudaGetLastError());
  raise(cuda_error(sentence(std::string("backend::cuda, ") + what, expected, got), code));
}

inline void check(char const* what, cudaError_t code, std::size_t shared_bytes = 0) {
  if (code != cudaSuccess) fail_cuda(what, code, shared_bytes);
}

/// Where kernels go: into a stream, or, so that somebody knows how many a call has, nowhere but into a count.
class launch_queue {
 public:
  launch_queue(cuda_context const& context) : stream_(context.stream) {}
  explicit launch_queue(int& count) : count_(&count) {}

  cudaStream_t stream() const { return stream_; }
  bool only_counts() const { return count_ != nullptr; }
  void count() const { ++*count_; }

 private:
  cudaStream_t stream_ = nullptr;
  int* count_ = nullptr;
};

/// Enqueues one kernel whose blocks come in clusters of so many. `what` names it in an error.
template <class... Parameters, class... Arguments>
void launch_clusters(launch_queue const& queue, char const* what, void (*kernel)(Parameters...), std::int64_t blocks,
                     int threads, std::size_t shared_bytes, int cluster, Arguments const&... arguments) {
  if (queue.only_counts()) return queue.count();
  constexpr std::int64_t most_blocks = (std::int64_t{1} << 31) - 1;
  if (blocks > most_blocks) {
    fail(std::string("backend::cuda, ") + what, "at most " + std::to_string(most_blocks) + " blocks (fewer tokens)",
         std::to_string(blocks));
  }
  constexpr std::size_t without_asking = 48 * 1024;
  if (shared_bytes > without_asking) {
    check(what,
          cudaFuncSetAttribute(reinterpret_cast<void const*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          shared_bytes);
  }
  cudaLaunchAttribute clusters{};
  clusters.id = cudaLaunchAttributeClusterDimension;
  clusters.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = queue.stream();
  config.attrs = &clusters;
  config.numAttrs = cluster > 1 ? 1 : 0;
  check(what, cudaLaunchKernelEx(&config, kernel, arguments...), shared_bytes);
}

/// Enqueues one kernel.
template <class... Parameters, class... Arguments>
void launch(launch_queue const& queue, char const* what, void (*kernel)(Parameters...), std::int64_t blocks,
            int threads, std::size_t shared_bytes, Arguments const&... arguments) {
  launch_clusters(queue, what, kernel, blocks, threads, shared_bytes, 1, arguments...);
}

/// Throws where work on a stream goes into a graph.
inline void check_not_captured(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check("cudaStreamIsCapturing", cudaStreamIsCapturing(stream, &status));
  if (status == cudaStreamCaptureStatusNone) return;
  fail("backend::offloaded", "a stream that is not captured (which experts have to be fetched is known to no graph)",
       "one that is");
}

/// Enqueues a copy from device memory to device memory.
template <class T>
void enqueue_copy(launch_queue const& queue, T* to, T const* from, std::int64_t count) {
  if (queue.only_counts()) return queue.count();
  check("cudaMemcpyAsync", cudaMemcpyAsync(to, from, sizeof(T) * static_cast<std::size_t>(count),
                                           cudaMemcpyDeviceToDevice, queue.stream()));
}

}  // namespace cuda
}  // namespace switchyard
