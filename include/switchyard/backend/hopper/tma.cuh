#pragma once

#include <switchyard/backend/cuda/launch.cuh>
#include <switchyard/core/bfloat16.hpp>
#include <switchyard/core/half.hpp>

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <string>

/// Copies of boxes of a tensor to shared memory by the tensor memory accelerator, compute capability 9.0.
namespace switchyard::hopper {

using namespace cuda;

constexpr CUtensorMapDataType tensor_map_type(bfloat16) { return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16; }
constexpr CUtensorMapDataType tensor_map_type(half) { return CU_TENSOR_MAP_DATA_TYPE_FLOAT16; }
constexpr CUtensorMapDataType tensor_map_type(std::uint8_t) { return CU_TENSOR_MAP_DATA_TYPE_UINT8; }

/// Makes maps of tensors. It asks the driver for its function when it is made: nothing is linked, nothing is kept.
class tensor_maps {
 public:
  tensor_maps() {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    check("cuTensorMapEncodeTiled",
          cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result));
#else
    check("cuTensorMapEncodeTiled",
          cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result));
#endif
    if (found == nullptr || result != cudaDriverEntryPointSuccess) {
      fail("backend::hopper", "a driver of CUDA 12 or newer", "one without cuTensorMapEncodeTiled");
    }
    encode_ = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found);
  }

  /// A tensor of three dimensions, the first one without gaps: entry (x, y, z) stands at
  /// `data[x + y * strides[0] + z * strides[1]]`. A copy brings `box[0]` times `box[1]` entries of one z; a line of the
  /// first dimension has 128 bytes, and the eight 16-byte pieces of line i stand at their number xor i % 8. What lies
  /// outside of the tensor comes as zeros.
  template <class Element>
  void map(CUtensorMap& result, Element const* data, std::uint64_t const (&sizes)[3], std::int64_t const (&strides)[2],
           std::uint32_t const (&box)[2]) const {
    cuuint64_t const all_sizes[3] = {sizes[0], sizes[1], sizes[2]};
    cuuint64_t const bytes[2] = {static_cast<cuuint64_t>(strides[0]) * sizeof(Element),
                                 static_cast<cuuint64_t>(strides[1]) * sizeof(Element)};
    cuuint32_t const whole_box[3] = {box[0], box[1], 1}, steps[3] = {1, 1, 1};
    CUresult const code = encode_(&result, tensor_map_type(Element{}), 3, const_cast<Element*>(data), all_sizes, bytes,
                                  whole_box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (code != CUDA_SUCCESS) {
      fail("backend::hopper, cuTensorMapEncodeTiled", "a tensor map",
           "CUresult " + std::to_string(static_cast<int>(code)));
    }
  }

 private:
  PFN_cuTensorMapEncodeTiled_v12000 encode_ = nullptr;
};

/// Copies a box to shared memory; its bytes arrive at the barrier.
__device__ inline void copy_box(std::uint32_t to, CUtensorMap const& map, int x, int y, int z, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::
          "r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(barrier)
      : "memory");
}

/// The same to the same address in all blocks of the cluster that have a bit in `blocks`, each with its own barrier.
__device__ inline void copy_box_to(std::uint16_t blocks, std::uint32_t to, CUtensorMap const& map, int x, int y, int z,
                                   std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(barrier), "h"(blocks)
      : "memory");
}

}  // namespace switchyard::hopper
