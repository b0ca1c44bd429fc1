#pragma once

#include <switchyard/core/bfloat16.hpp>
#include <switchyard/core/half.hpp>

#include <cuda_runtime.h>

#include <cstdint>

/// Products of a warpgroup whose factors stand in shared memory, compute capability 9.0.
///
/// Both factors come in lines of 128 bytes, the eight 16-byte pieces of line i standing at their number xor i % 8, and
/// begin at multiples of 1024 bytes.
namespace switchyard::hopper {

/// Which index of the right factor runs along its lines.
enum class lines_along { depth, features };

/// A factor for the tensor cores: where it begins, and how far eight lines are from the next eight. Where lines run along
/// features, `next_features` is how far 64 features are from the next 64.
/// Source: PTX ISA 8.0, asynchronous warpgroup-level matrix shared memory layout, 128-byte swizzle.
__device__ inline std::uint64_t factor_at(std::uint32_t address, std::uint32_t next_features = 16) {
  constexpr std::uint64_t eight_lines = 1024, swizzle_of_128_bytes = 1;
  return (address & 0x3ffffu) >> 4 | static_cast<std::uint64_t>(next_features >> 4) << 16 | eight_lines >> 4 << 32 |
         swizzle_of_128_bytes << 62;
}

/// Registers and memory that products will use are as the code before has left them.
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

/// Closes a group of products.
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/// Waits until at most the last `Pending` groups are under way.
template <int Pending>
__device__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

// sums += a b, or sums = a b when `accumulate` is 0, for 64 rows, 16 of depth and 2 * Sums features. Lane l of warp w has
// for features 8 j + 2 (l % 4) and the next, of rows 16 w + l / 4 and 8 more, sums 4 j to 4 j + 3.
// The instruction names every register, so that each width has to be spelled out.
#define SWITCHYARD_NAMES_1 "%0, %1, %2, %3, %4, %5, %6, %7"
#define SWITCHYARD_NAMES_2 SWITCHYARD_NAMES_1 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define SWITCHYARD_NAMES_3 SWITCHYARD_NAMES_2 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define SWITCHYARD_NAMES_4 SWITCHYARD_NAMES_3 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define SWITCHYARD_NAMES_5 SWITCHYARD_NAMES_4 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define SWITCHYARD_NAMES_6 SWITCHYARD_NAMES_5 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define SWITCHYARD_NAMES_7 SWITCHYARD_NAMES_6 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define SWITCHYARD_NAMES_8 SWITCHYARD_NAMES_7 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define SWITCHYARD_NAMES_9 SWITCHYARD_NAMES_8 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define SWITCHYARD_NAMES_10 SWITCHYARD_NAMES_9 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define SWITCHYARD_NAMES_11 SWITCHYARD_NAMES_10 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define SWITCHYARD_NAMES_12 SWITCHYARD_NAMES_11 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define SWITCHYARD_NAMES_13 SWITCHYARD_NAMES_12 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define SWITCHYARD_NAMES_14 SWITCHYARD_NAMES_13 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define SWITCHYARD_NAMES_15 SWITCHYARD_NAMES_14 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define SWITCHYARD_NAMES_16 SWITCHYARD_NAMES_15 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define SWITCHYARD_EIGHT(i)                                                                                     \
  "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]), "+f"(sums[i + 5]), \
      "+f"(sums[i + 6]), "+f"(sums[i + 7])
#define SWITCHYARD_SUMS_1 SWITCHYARD_EIGHT(0)
#define SWITCHYARD_SUMS_2 SWITCHYARD_SUMS_1, SWITCHYARD_EIGHT(8)
#define SWITCHYARD_SUMS_3 SWITCHYARD_SUMS_2, SWITCHYARD_EIGHT(16)
#define SWITCHYARD_SUMS_4 SWITCHYARD_SUMS_3, SWITCHYARD_EIGHT(24)
#define SWITCHYARD_SUMS_5 SWITCHYARD_SUMS_4, SWITCHYARD_EIGHT(32)
#define SWITCHYARD_SUMS_6 SWITCHYARD_SUMS_5, SWITCHYARD_EIGHT(40)
#define SWITCHYARD_SUMS_7 SWITCHYARD_SUMS_6, SWITCHYARD_EIGHT(48)
#define SWITCHYARD_SUMS_8 SWITCHYARD_SUMS_7, SWITCHYARD_EIGHT(56)
#define SWITCHYARD_SUMS_9 SWITCHYARD_SUMS_8, SWITCHYARD_EIGHT(64)
#define SWITCHYARD_SUMS_10 SWITCHYARD_SUMS_9, SWITCHYARD_EIGHT(72)
#define SWITCHYARD_SUMS_11 SWITCHYARD_SUMS_10, SWITCHYARD_EIGHT(80)
#define SWITCHYARD_SUMS_12 SWITCHYARD_SUMS_11, SWITCHYARD_EIGHT(88)
#define SWITCHYARD_SUMS_13 SWITCHYARD_SUMS_12, SWITCHYARD_EIGHT(96)
#define SWITCHYARD_SUMS_14 SWITCHYARD_SUMS_13, SWITCHYARD_EIGHT(104)
#define SWITCHYARD_SUMS_15 SWITCHYARD_SUMS_14, SWITCHYARD_EIGHT(112)
#define SWITCHYARD_SUMS_16 SWITCHYARD_SUMS_15, SWITCHYARD_EIGHT(120)
#define SWITCHYARD_PRODUCT(element, type, width, eighths, a_at, b_at, accumulate_at, lines_at)                      \
  template <lines_along Lines>                                                                                      \
  __device__ void multiply_from_shared(element, float(&sums)[width / 2], std::uint64_t a, std::uint64_t b,          \
                                       int accumulate) {                                                            \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " accumulate_at ", 0;\nwgmma.mma_async.sync.aligned.m64n" #width \
                 "k16.f32." type "." type " {" SWITCHYARD_NAMES_##eighths "}, " a_at ", " b_at                      \
                                                                          ", p, 1, 1, 0, " lines_at ";\n}"          \
                 : SWITCHYARD_SUMS_##eighths                                                                        \
                 : "l"(a), "l"(b), "r"(accumulate), "n"(Lines == lines_along::features ? 1 : 0));                   \
  }
SWITCHYARD_PRODUCT(bfloat16, "bf16", 64, 4, "%32", "%33", "%34", "%35")
SWITCHYARD_PRODUCT(half, "f16", 64, 4, "%32", "%33", "%34", "%35")
SWITCHYARD_PRODUCT(bfloat16, "bf16", 128, 8, "%64", "%65", "%66", "%67")
SWITCHYARD_PRODUCT(half, "f16", 128, 8, "%64", "%65", "%66", "%67")
SWITCHYARD_PRODUCT(bfloat16, "bf16", 192, 12, "%96", "%97", "%98", "%99")
SWITCHYARD_PRODUCT(half, "f16", 192, 12, "%96", "%97", "%98", "%99")
SWITCHYARD_PRODUCT(bfloat16, "bf16", 256, 16, "%128", "%129", "%130", "%131")
SWITCHYARD_PRODUCT(half, "f16", 256, 16, "%128", "%129", "%130", "%131")
#undef SWITCHYARD_PRODUCT
// The same of E4M3, 32 of depth; both factors' lines run along the depth.
#define SWITCHYARD_PRODUCT(width, eighths, a_at, b_at, accumulate_at)                                               \
  template <lines_along Lines>                                                                                      \
  __device__ void multiply_from_shared(std::uint8_t, float(&sums)[width / 2], std::uint64_t a, std::uint64_t b,     \
                                       int accumulate) {                                                            \
    static_assert(Lines == lines_along::depth);                                                                     \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " accumulate_at ", 0;\nwgmma.mma_async.sync.aligned.m64n" #width \
                 "k32.f32.e4m3.e4m3 {" SWITCHYARD_NAMES_##eighths "}, " a_at ", " b_at ", p, 1, 1;\n}"              \
                 : SWITCHYARD_SUMS_##eighths                                                                        \
                 : "l"(a), "l"(b), "r"(accumulate));                                                                \
  }
SWITCHYARD_PRODUCT(64, 4, "%32", "%33", "%34")
SWITCHYARD_PRODUCT(128, 8, "%64", "%65", "%66")
#undef SWITCHYARD_PRODUCT
#undef SWITCHYARD_EIGHT
#undef SWITCHYARD_NAMES_1
#undef SWITCHYARD_SUMS_1
#undef SWITCHYARD_NAMES_2
#undef SWITCHYARD_SUMS_2
#undef SWITCHYARD_NAMES_3
#undef SWITCHYARD_SUMS_3
#undef SWITCHYARD_NAMES_4
#undef SWITCHYARD_SUMS_4
#undef SWITCHYARD_NAMES_5
#undef SWITCHYARD_SUMS_5
#undef SWITCHYARD_NAMES_6
#undef SWITCHYARD_SUMS_6
#undef SWITCHYARD_NAMES_7
#undef SWITCHYARD_SUMS_7
#undef SWITCHYARD_NAMES_8
#undef SWITCHYARD_SUMS_8
#undef SWITCHYARD_NAMES_9
#undef SWITCHYARD_SUMS_9
#undef SWITCHYARD_NAMES_10
#undef SWITCHYARD_SUMS_10
#undef SWITCHYARD_NAMES_11
#undef SWITCHYARD_SUMS_11
#undef SWITCHYARD_NAMES_12
#undef SWITCHYARD_SUMS_12
#undef SWITCHYARD_NAMES_13
#undef SWITCHYARD_SUMS_13
#undef SWITCHYARD_NAMES_14
#undef SWITCHYARD_SUMS_14
#undef SWITCHYARD_NAMES_15
#undef SWITCHYARD_SUMS_15
#undef SWITCHYARD_NAMES_16
#undef SWITCHYARD_SUMS_16

}  // namespace switchyard::hopper
