#pragma once

#include <switchyard/core/bfloat16.hpp>
#include <switchyard/core/half.hpp>

#include <cuda_runtime.h>

#include <cstdint>

/// One function per instruction, compute capability 8.0.
namespace switchyard::cuda {

__device__ inline std::uint32_t shared_address(void const* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// Copies 16 bytes to shared memory behind the thread's back: the first `bytes` (0 to 16) from `from`, then zeros.
__device__ inline void copy_async(std::uint32_t to, void const* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

/// The same of 4 bytes.
__device__ inline void copy_word_async(std::uint32_t to, void const* from, int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

/// Closes a group of copies.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits until at most the last `Pending` groups are under way.
template <int Pending>
__device__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

/// 16 bytes of shared memory.
__device__ inline uint4 load_shared(std::uint32_t from) {
  uint4 words;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(from)
               : "memory");
  return words;
}
__device__ inline std::uint32_t load_shared_word(std::uint32_t from) {
  std::uint32_t word;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(from) : "memory");
  return word;
}
__device__ inline void store_shared(std::uint32_t to, uint4 words) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words.x), "r"(words.y), "r"(words.z),
               "r"(words.w)
               : "memory");
}

/// Four 8 x 16-byte matrices; lane l names row l % 8 of matrix l / 8, and gets 4 bytes l % 4 of row l / 4 of each.
__device__ inline void load_matrices(std::uint32_t (&to)[4], std::uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
}

/// sums += a b for a 16 x 16 piece of a and a 16 x 8 piece of b.
__device__ inline void multiply(bfloat16, float (&sums)[4], std::uint32_t const (&a)[4], std::uint32_t b0,
                                std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void multiply(half, float (&sums)[4], std::uint32_t const (&a)[4], std::uint32_t b0,
                                std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// sums += a b for a 16 x 8 piece of a and an 8 x 8 piece of b, all of tf32: floats whose last 13 bits are zero.
__device__ inline void multiply_tf32(float (&sums)[4], std::uint32_t const (&a)[4], std::uint32_t b0,
                                     std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// A float as the sum of two tf32 numbers, each the nearest one. With both parts of two factors, three tf32 products make
/// one whose error is that of a float product; the fourth, of the low parts, is too small to matter.
struct tf32_parts {
  std::uint32_t high, low;

  __device__ explicit tf32_parts(std::uint32_t bits) {
    // Rounding carries into the sign of a NaN with these bits, such as those that a GPU's arithmetic makes, and leaves a zero.
    high = (bits & 0x7ffff000u) == 0x7ffff000u ? bits : nearest(bits);
    low = nearest(__float_as_uint(__uint_as_float(bits) - __uint_as_float(high)));
  }

 private:
  __device__ static std::uint32_t nearest(std::uint32_t bits) { return (bits + 0x1000u) & 0xffffe000u; }
};

/// Two neighbouring elements as one word, the first in the lower half, rounded to nearest even.
__device__ inline std::uint32_t pack(bfloat16, float first, float second) {
  std::uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}
__device__ inline std::uint32_t pack(half, float first, float second) {
  std::uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}

/// The two elements of a word. Both types are exact in tf32, too.
__device__ inline float2 unpack(bfloat16, std::uint32_t word) {
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
__device__ inline float2 unpack(half, std::uint32_t word) {
  float2 both;
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
      : "=f"(both.x), "=f"(both.y)
      : "r"(word));
  return both;
}

/// Sets of 16-byte copies that differ only in where they start: a thread's share of a tile of rows in every stage. All
/// that a stage has to compute is how far along the rows it is.
template <class Element, int Copies>
struct row_copies {
  static constexpr int size = 16 / static_cast<int>(sizeof(Element));
  Element const* from[Copies];
  unsigned present = 0;  ///< a bit per copy; where it is not set, zeros are written

  /// `row` null: zeros. `anywhere` may be named without being read.
  __device__ void set(int copy, Element const* row, int column, Element const* anywhere) {
    from[copy] = row == nullptr ? anywhere : row + column;
    present |= static_cast<unsigned>(row != nullptr) << copy;
  }

  /// Copies what stands `offset` elements further, as far as `rest` elements go; `to` and every `pitch` bytes. `Count`
  /// copies from `first` on.
  template <int Count = Copies>
  __device__ void enqueue(std::uint32_t to, int pitch, int offset, int rest, int first = 0) const {
    int const count = rest < 0 ? 0 : rest < size ? rest : size;
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      int const bytes = (present >> (first + i) & 1u) != 0 ? count * static_cast<int>(sizeof(Element)) : 0;
      copy_async(to + static_cast<std::uint32_t>(i * pitch), from[first + i] + offset, bytes);
    }
  }
};

/// A 16-byte value that is moved as one.
using chunk = uint4;
inline constexpr int chunk_bytes = 16;

/// The elements of a chunk as floats, and back.
template <class Element>
__device__ void to_floats(chunk from, float (&to)[16 / sizeof(Element)]) {
  std::uint32_t const words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(Element) == 2) {
      float2 const both = unpack(Element{}, words[i]);
      to[2 * i] = both.x;
      to[2 * i + 1] = both.y;
    } else {
      to[i] = __uint_as_float(words[i]);
    }
  }
}
template <class Element>
__device__ chunk from_floats(float const (&from)[16 / sizeof(Element)]) {
  std::uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(Element) == 2) {
      words[i] = pack(Element{}, from[2 * i], from[2 * i + 1]);
    } else {
      words[i] = __float_as_uint(from[i]);
    }
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

}  // namespace switchyard::cuda
