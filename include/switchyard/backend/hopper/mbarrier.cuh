#pragma once

#include <switchyard/backend/cuda/instructions.cuh>

#include <cuda_runtime.h>

#include <cstdint>

/// One function per instruction, compute capability 9.0: barriers in shared memory, clusters, registers.
///
/// A barrier is named by its address in shared memory. It counts arrivals, and bytes of copies that name it; when none is
/// missing any more its phase ends, and the next one begins with the same number of arrivals.
namespace switchyard::hopper {

using namespace cuda;

__device__ inline void init_barrier(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

/// Shows barriers that were just made to the cluster and to copies; the cluster has to meet after it.
__device__ inline void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/// Arrives at the barrier that stands at the same address in the shared memory of another block of the cluster. It releases
/// nothing but what products have read: with the scope of the cluster the compiler waits for all that the thread has
/// written to global memory, every time.
__device__ inline void arrive_at(std::uint32_t barrier, std::uint32_t block) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}" ::"r"(barrier),
      "r"(block)
      : "memory");
}

/// Arrives when all copies of 16 bytes that this thread has begun have come. Does not wait for that.
__device__ inline void arrive_when_copied(std::uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

/// Arrives, and lets the phase wait for so many bytes of copies.
__device__ inline void arrive_and_expect(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

/// Waits until the phase of this parity has ended. Before the first one ends, the phase of parity 1 counts as ended.
__device__ inline void wait_for_phase(std::uint32_t barrier, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

/// One warpgroup waits at a barrier of the block until another has passed it, which does not wait.
__device__ inline void wait_for_warpgroup(int barrier) {
  asm volatile("barrier.sync.aligned %0, 256;" ::"r"(barrier) : "memory");
}
__device__ inline void pass_to_warpgroup(int barrier) {
  asm volatile("barrier.arrive.aligned %0, 256;" ::"r"(barrier) : "memory");
}

/// The threads of one warpgroup meet at a barrier of their own.
__device__ inline void meet_warpgroup(int barrier) {
  asm volatile("barrier.sync.aligned %0, 128;" ::"r"(barrier) : "memory");
}

/// All threads of all blocks of the cluster meet.
__device__ inline void meet_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// Which block of its cluster this is.
__device__ inline std::uint32_t block_in_cluster() {
  std::uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

/// Gives registers of the warpgroup back, down to `Count` for each thread; takes them, up to `Count`.
template <int Count>
__device__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}
template <int Count>
__device__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}

/// What ordinary writes and copies of 16 bytes have left in shared memory, as far as this thread has waited for it, tensor
/// cores see after it.
__device__ inline void show_to_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

}  // namespace switchyard::hopper
