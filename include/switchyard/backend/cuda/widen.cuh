#pragma once

#include <switchyard/backend/cuda/instructions.cuh>
#include <switchyard/quantised/codes.hpp>

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

/// Codes of quantised weights as pairs of elements, a few instructions for each weight: bytes are put into floats whose exponent makes them
/// whole numbers. Weights are the floats that the formats say, rounded once. Two things differ from `read` of the formats where nothing
/// else depends on them: -0 may be +0, and what an infinite scale multiplies is NaN.
namespace switchyard::cuda {

__device__ inline float half_of(std::uint32_t bits) { return unpack(half{}, bits & 0xffffu).x; }

/// A whole number below 2^23.
__device__ inline float small_float(std::uint32_t number) { return __uint_as_float(0x4b000000u | number) - 0x1p23f; }

/// Byte `index` of a word as 128 more than it is, where it is below 128, and as 32768 more.
__device__ inline float byte_and_128(std::uint32_t word, unsigned index) {
  return __uint_as_float(__byte_perm(word, 0x43000000u, 0x7044u | index << 8));
}
__device__ inline float byte_and_32768(std::uint32_t word, unsigned index) {
  return __uint_as_float(__byte_perm(word, 0x47000000u, 0x7404u | index << 4));
}

/// (code - zero) scale of four codes below 128. With a scale of at most 16 bits all is exact.
template <class Element>
__device__ void small_codes_to(Element, std::uint32_t codes, float zero, float scale, std::uint32_t& first,
                               std::uint32_t& second) {
  float const less = -(128.0f + zero) * scale;
  first = pack(Element{}, fmaf(byte_and_128(codes, 0), scale, less), fmaf(byte_and_128(codes, 1), scale, less));
  second = pack(Element{}, fmaf(byte_and_128(codes, 2), scale, less), fmaf(byte_and_128(codes, 3), scale, less));
}

/// The same of the eight codes of 4 bits of a word, lowest first.
template <class Element>
__device__ void neighbours_to(Element, std::uint32_t word, float zero, float scale, std::uint32_t* pairs) {
  float const less = -(128.0f + zero) * scale;
  std::uint32_t const even = word & 0x0f0f0f0fu, odd = word >> 4 & 0x0f0f0f0fu;
#pragma unroll
  for (unsigned i = 0; i < 4; ++i) {
    pairs[i] = pack(Element{}, fmaf(byte_and_128(even, i), scale, less), fmaf(byte_and_128(odd, i), scale, less));
  }
}

/// code scale - least of four codes below 128, rounded as a float first.
template <class Element>
__device__ void codes_less_to(Element, std::uint32_t codes, float scale, float least, std::uint32_t& first,
                              std::uint32_t& second) {
  auto const weight = [&](unsigned i) { return fmaf(byte_and_128(codes, i) - 128.0f, scale, -least); };
  first = pack(Element{}, weight(0), weight(1));
  second = pack(Element{}, weight(2), weight(3));
}

/// Four signed bytes times a scale, rounded as floats first.
template <class Element>
__device__ void signed_bytes_to(Element, std::uint32_t codes, float scale, std::uint32_t& first,
                                std::uint32_t& second) {
  std::uint32_t const shifted = codes ^ 0x80808080u;
  auto const weight = [&](unsigned i) { return (byte_and_32768(shifted, i) - (32768.0f + 128.0f)) * scale; };
  first = pack(Element{}, weight(0), weight(1));
  second = pack(Element{}, weight(2), weight(3));
}

/// Four E4M3 times a scale, rounded as floats first.
template <class Element>
__device__ void e4m3_to(Element, std::uint32_t codes, float scale, std::uint32_t& first, std::uint32_t& second) {
#if __CUDA_ARCH__ >= 890
  std::uint32_t halves[2];
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.rn.f16x2.e4m3x2 %0, l; cvt.rn.f16x2.e4m3x2 %1, h;}"
      : "=r"(halves[0]), "=r"(halves[1])
      : "r"(codes));
  float2 const low = unpack(half{}, halves[0]), high = unpack(half{}, halves[1]);
  first = pack(Element{}, low.x * scale, low.y * scale);
  second = pack(Element{}, high.x * scale, high.y * scale);
#else
  if (((codes & 0x7f7f7f7fu) + 0x01010101u & 0x80808080u) != 0) {  // NaN
    auto const weight = [&](int i) { return quantised::e4m3(codes >> 8 * i & 255u) * scale; };
    first = pack(Element{}, weight(0), weight(1));
    second = pack(Element{}, weight(2), weight(3));
    return;
  }
  // A half with the same bits in front is 2^8 times smaller.
  auto const halves = [&](unsigned which) {
    std::uint32_t const bytes = __byte_perm(codes, 0, which);
    return unpack(half{}, (bytes & 0x80008000u) | (bytes >> 1 & 0x3f803f80u));
  };
  float2 const low = halves(0x1404u), high = halves(0x3424u);
  first = pack(Element{}, low.x * 0x1p8f * scale, low.y * 0x1p8f * scale);
  second = pack(Element{}, high.x * 0x1p8f * scale, high.y * 0x1p8f * scale);
#endif
}

/// The four E2M1 in the lower half of a word as bfloat16, which hold them.
class e2m1_codes {
 public:
  __device__ explicit e2m1_codes(std::uint32_t word) {
    std::uint32_t const sizes = word & 0x7777u;
    high_ = __byte_perm(0x3f3f3f00u, 0x40404040u, sizes) | __byte_perm(0x8000u, 0, word >> 3 & 0x1111u);
    low_ = __byte_perm(0xc0800000u, 0xc0804000u, sizes);
  }
  template <unsigned First, unsigned Second>
  __device__ std::uint32_t pair() const {
    return __byte_perm(low_, high_, First | (4 + First) << 4 | Second << 8 | (4 + Second) << 12);
  }

 private:
  std::uint32_t low_, high_;  // bytes of each
};

/// Two bfloat16 times a factor, rounded as floats first.
template <class Element>
__device__ std::uint32_t times(Element, std::uint32_t two, float factor) {
  float2 const both = unpack(bfloat16{}, two);
  return pack(Element{}, both.x * factor, both.y * factor);
}

/// An E8M0 that multiplies pairs of E2M1.
template <class Element>
class power_of_two_scale {
 public:
  __device__ explicit power_of_two_scale(std::uint32_t code) : factor_(quantised::e8m0(code)) {}
  __device__ std::uint32_t times(std::uint32_t two) const { return cuda::times(Element{}, two, factor_); }

 private:
  float factor_;
};
/// bfloat16 holds all of them.
template <>
class power_of_two_scale<bfloat16> {
 public:
  __device__ explicit power_of_two_scale(std::uint32_t code)
      : both_((code == 0     ? 0x0040u
               : code == 255 ? 0x7fc0u
                             : code << 7) *
              0x10001u) {}
  __device__ std::uint32_t times(std::uint32_t two) const {
    std::uint32_t result;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(two), "r"(both_), "r"(0x80008000u));
    return result;
  }

 private:
  std::uint32_t both_;
};

}  // namespace switchyard::cuda
