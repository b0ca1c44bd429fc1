#pragma once

#include <switchyard/core/finite.hpp>
#include <switchyard/core/half.hpp>
#include <switchyard/core/host_device.hpp>
#include <switchyard/quantised/blocks.hpp>
#include <switchyard/quantised/codes.hpp>

#include <cmath>
#include <cstdint>

/// Floats to codes, and floats to blocks with the scales that GGUF's quantisers choose: what `quantise` is made of.
///
/// Source: gguf.quants (the package) for q8_0, q4_0 and mxfp4, ggml's ggml-quants.c (`quantize_row_q4_K_ref`, `quantize_row_q6_K_ref`) for q4_K
/// and q6_K. Bytes are theirs where the compiler contracts no products and sums.
namespace switchyard::quantised {

/// Where a number lies in the middle between two codes.
enum class ties { to_even, away_from_zero };

/// The code of E2M1 that is nearest; 6 beyond 6. Negative numbers that round to 0 get code 8, -0.
SWITCHYARD_HD constexpr std::uint32_t to_e2m1(float value, ties middle) {
  std::uint32_t const bits = __builtin_bit_cast(std::uint32_t, value);
  float const size = __builtin_bit_cast(float, bits & 0x7fffffffu);
  bool const up = middle == ties::away_from_zero;
  int const code = (up ? size >= 0.25f : size > 0.25f) + (size >= 0.75f) + (up ? size >= 1.25f : size > 1.25f) +
                   (size >= 1.75f) + (up ? size >= 2.5f : size > 2.5f) + (size >= 3.5f) +
                   (up ? size >= 5.0f : size > 5.0f);
  return static_cast<std::uint32_t>(code) | (bits >> 31) << 3;
}

/// The code of E4M3 that is nearest, ties to even; 448 beyond 448.
SWITCHYARD_HD constexpr std::uint8_t to_e4m3(float value) {
  std::uint32_t const bits = __builtin_bit_cast(std::uint32_t, value), magnitude = bits & 0x7fffffffu;
  std::uint32_t code = 0x7eu;
  if (magnitude < 0x3c800000u) {  // below 2^-6: the float adder rounds at 2^-9
    code = __builtin_bit_cast(std::uint32_t, __builtin_bit_cast(float, magnitude) + 0x1p14f) - 0x46800000u;
  } else if (magnitude < 0x43e00000u) {
    code = (magnitude - (120u << 23) + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20;
  }
  return static_cast<std::uint8_t>(code | (bits >> 31) << 7);
}

static_assert(to_e4m3(448.0f) == 0x7e && to_e4m3(1e9f) == 0x7e && to_e4m3(-0x1p-9f) == 0x81 && to_e4m3(0.0f) == 0 &&
              to_e2m1(-5.0f, ties::to_even) == 14 && to_e2m1(5.0f, ties::away_from_zero) == 7);

/// Steps that blocks share.
namespace narrowing {

/// To nearest, ties to even. Numbers beyond 2^22 become that.
inline int nearest(float value) {
  value = value > -0x1p22f ? value : -0x1p22f;
  value = value < 0x1p22f ? value : 0x1p22f;
  return __builtin_bit_cast(int, value + 0x1.8p23f) - 0x4b400000;  // the float adder rounds
}
constexpr int clamped(int value, int least, int most) { return value < least ? least : value > most ? most : value; }

/// Of the largest size, the first one.
inline float largest_signed(float const* weights, int count) {
  float largest = 0;
  for (int i = 0; i < count; ++i) largest = std::fabs(weights[i]) > std::fabs(largest) ? weights[i] : largest;
  return largest;
}
inline float largest(float const* weights, int count) { return std::fabs(largest_signed(weights, count)); }

/// 1 / d, or 0 where d is 0 or so small that this overflows: as a half it is 0 long before.
inline float inverse(float d) {
  float const result = d == 0.0f ? 0.0f : 1.0f / d;
  return is_finite(result) ? result : 0.0f;
}

inline void put_half(float value, std::uint8_t* bytes) {
  half const stored(value);
  bytes[0] = static_cast<std::uint8_t>(stored.bits & 255u);
  bytes[1] = static_cast<std::uint8_t>(stored.bits >> 8);
}

/// Codes of 4 bits: the first half of them in the low halves of bytes.
inline void put_halves(std::uint8_t const* codes, int count, std::uint8_t* bytes) {
  for (int i = 0; i < count / 2; ++i) bytes[i] = static_cast<std::uint8_t>(codes[i] | codes[count / 2 + i] << 4);
}

/// Scale and minimum of 32 codes from 0 to 15, weight = scale code - minimum: of 22 scales around the range's, each with the least squares of what
/// is left as its solution, the one with the least error, where larger weights count more.
struct range32 {
  float scale = 0, minimum = 0;
  std::uint8_t codes[32] = {};
};
inline range32 fit_range(float const* x) {
  float squares = 0;
  for (int i = 0; i < 32; ++i) squares += x[i] * x[i];
  float const mean = std::sqrt(squares / 32.0f);
  float importance[32], least = x[0], most = x[0], sum = 0, sum_x = 0;
  for (int i = 0; i < 32; ++i) {
    importance[i] = mean + std::fabs(x[i]);
    sum += importance[i];
    sum_x += importance[i] * x[i];
    least = x[i] < least ? x[i] : least;
    most = x[i] > most ? x[i] : most;
  }
  least = least > 0.0f ? 0.0f : least;
  range32 best;
  best.minimum = -least;
  float const range = most - least;
  if (!(range > 0x1p-120f)) return best;  // whose scale is 0 as a half

  auto const codes_at = [&](float inverse_scale, std::uint8_t* codes) {
    for (int i = 0; i < 32; ++i) {
      codes[i] = static_cast<std::uint8_t>(clamped(nearest(inverse_scale * (x[i] - least)), 0, 15));
    }
  };
  auto const error_of = [&](float scale, float smallest, std::uint8_t const* codes) {
    float error = 0;
    for (int i = 0; i < 32; ++i) {
      float const difference = scale * static_cast<float>(codes[i]) + smallest - x[i];
      error += importance[i] * (difference * difference);
    }
    return error;
  };
  float const first = 15.0f / range;
  best.scale = 1.0f / first;
  codes_at(first, best.codes);
  float best_error = error_of(best.scale, least, best.codes);
  for (int step = 0; step <= 20; ++step) {
    std::uint8_t codes[32];
    codes_at((-1.0f + 0.1f * static_cast<float>(step) + 15.0f) / (most - least), codes);
    float sum_l = 0, sum_l2 = 0, sum_xl = 0;
    for (int i = 0; i < 32; ++i) {
      float const l = static_cast<float>(codes[i]), w = importance[i];
      sum_l += w * l;
      sum_l2 += w * l * l;
      sum_xl += w * l * x[i];
    }
    float const determinant = sum * sum_l2 - sum_l * sum_l;
    if (!(determinant > 0.0f)) continue;
    float scale = (sum * sum_xl - sum_x * sum_l) / determinant;
    float smallest = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
    if (smallest > 0.0f) {
      smallest = 0;
      scale = sum_xl / sum_l2;
    }
    float const error = error_of(scale, smallest, codes);
    if (!(error < best_error)) continue;
    best_error = error;
    best.scale = scale;
    best.minimum = -smallest;
    least = smallest;  // from which the next scales start, as published
    for (int i = 0; i < 32; ++i) best.codes[i] = codes[i];
  }
  return best;
}

/// The scale of 16 codes from -32 to 31: of 19 around the largest weight's, the one with the least error, where squares of weights are the
/// importance. The codes have 32 added.
inline float fit_scale(float const* x, std::uint8_t* codes) {
  float const largest = largest_signed(x, 16);
  for (int i = 0; i < 16; ++i) codes[i] = 0;
  if (std::fabs(largest) < 1e-15f) return 0;
  float scale = 0, best = 0;
  for (int step = 0; step < 19; ++step) {  // 0, then -9 to -1, then 1 to 9
    float const around = step == 0 ? 0.0f : static_cast<float>(step <= 9 ? step - 10 : step - 9);
    float const inverse_scale = -(32.0f + 0.1f * around) / largest;
    float sum_xl = 0, sum_l2 = 0;
    std::uint8_t tried[16];
    for (int i = 0; i < 16; ++i) {
      int const l = clamped(nearest(inverse_scale * x[i]), -32, 31);
      tried[i] = static_cast<std::uint8_t>(l + 32);
      float const w = x[i] * x[i], code = static_cast<float>(l);
      sum_xl += w * x[i] * code;
      sum_l2 += w * code * code;
    }
    if (step > 0 && !(sum_l2 > 0.0f && sum_xl * sum_xl > best * sum_l2)) continue;
    for (int i = 0; i < 16; ++i) codes[i] = tried[i];
    scale = sum_l2 == 0.0f ? 0.0f : sum_xl / sum_l2;
    best = scale * sum_xl;
  }
  return scale;
}

}  // namespace narrowing

/// d is the largest size / 127.
inline void narrow(q8_0, float const* weights, std::uint8_t* block) {
  float const d = narrowing::largest(weights, 32) / 127.0f, inverse = narrowing::inverse(d);
  narrowing::put_half(d, block);
  for (int i = 0; i < 32; ++i) {
    block[2 + i] = static_cast<std::uint8_t>(static_cast<int>(std::round(weights[i] * inverse)));
  }
}

/// The weight of the largest size has the code 0, -8.
inline void narrow(q4_0, float const* weights, std::uint8_t* block) {
  float const d = narrowing::largest_signed(weights, 32) / -8.0f, inverse = narrowing::inverse(d);
  narrowing::put_half(d, block);
  std::uint8_t codes[32];
  for (int i = 0; i < 32; ++i) {
    int const code = static_cast<int>(weights[i] * inverse + 8.5f);
    codes[i] = static_cast<std::uint8_t>(code < 15 ? code : 15);
  }
  narrowing::put_halves(codes, 32, block + 2);
}

/// The power of two is a quarter of the largest size, rounded down, so that sizes above 6 of it become 6. Ties go to the smaller code.
inline void narrow(mxfp4_halves, float const* weights, std::uint8_t* block) {
  float const largest = narrowing::largest(weights, 32);
  // As a float, which is the whole number where a size is just below a power of two.
  auto const floor_of_log = [](float size) {
    return static_cast<int>(std::floor(static_cast<float>(std::log2(double{size}))));
  };
  block[0] = static_cast<std::uint8_t>(largest > 0.0f ? narrowing::clamped(floor_of_log(largest) + 125, 0, 254) : 0);
  float sizes[8];
  for (std::uint32_t code = 0; code < 8; ++code) sizes[code] = e2m1(code) * e8m0(block[0]);
  std::uint8_t codes[32];
  for (int i = 0; i < 32; ++i) {
    float const size = std::fabs(weights[i]);
    int best = 0;
    for (int code = 1; code < 8; ++code) {
      if (std::fabs(sizes[code] - size) < std::fabs(sizes[best] - size)) best = code;
    }
    codes[i] = static_cast<std::uint8_t>(best == 0 || weights[i] >= 0.0f ? best : best + 8);
  }
  narrowing::put_halves(codes, 32, block + 1);
}

inline void narrow(q4_K, float const* weights, std::uint8_t* block) {
  narrowing::range32 parts[8];
  float scale = 0, minimum = 0;
  for (int j = 0; j < 8; ++j) {
    parts[j] = narrowing::fit_range(weights + 32 * j);
    scale = parts[j].scale > scale ? parts[j].scale : scale;
    minimum = parts[j].minimum > minimum ? parts[j].minimum : minimum;
  }
  float const inverse_scale = scale > 0.0f ? 63.0f / scale : 0.0f, inverse = minimum > 0.0f ? 63.0f / minimum : 0.0f;
  narrowing::put_half(scale / 63.0f, block);
  narrowing::put_half(minimum / 63.0f, block + 2);
  float const d = half_at(block), dmin = half_at(block + 2);
  std::uint8_t* const s = block + 4;
  for (int j = 0; j < 8; ++j) {
    int const of_scale = narrowing::clamped(narrowing::nearest(inverse_scale * parts[j].scale), 0, 63);
    int const of_minimum = narrowing::clamped(narrowing::nearest(inverse * parts[j].minimum), 0, 63);
    if (j < 4) {
      s[j] = static_cast<std::uint8_t>(of_scale);
      s[j + 4] = static_cast<std::uint8_t>(of_minimum);
    } else {
      s[j + 4] = static_cast<std::uint8_t>((of_scale & 15) | (of_minimum & 15) << 4);
      s[j - 4] = static_cast<std::uint8_t>(s[j - 4] | of_scale >> 4 << 6);
      s[j] = static_cast<std::uint8_t>(s[j] | of_minimum >> 4 << 6);
    }
    float const step = d * static_cast<float>(of_scale);
    if (step == 0.0f) continue;
    float const least = dmin * static_cast<float>(of_minimum);
    for (int i = 0; i < 32; ++i) {
      int const code = narrowing::nearest((weights[32 * j + i] + least) / step);
      parts[j].codes[i] = static_cast<std::uint8_t>(narrowing::clamped(code, 0, 15));
    }
  }
  for (int j = 0; j < 8; j += 2) {
    for (int i = 0; i < 32; ++i) {
      block[16 + 16 * j + i] = static_cast<std::uint8_t>(parts[j].codes[i] | parts[j + 1].codes[i] << 4);
    }
  }
}

inline void narrow(q6_K, float const* weights, std::uint8_t* block) {
  std::uint8_t codes[256];
  float scales[16], largest = 0;
  for (int j = 0; j < 16; ++j) {
    scales[j] = narrowing::fit_scale(weights + 16 * j, codes + 16 * j);
    largest = std::fabs(scales[j]) > std::fabs(largest) ? scales[j] : largest;
  }
  for (int i = 0; i < q6_K::bytes; ++i) block[i] = 0;
  if (std::fabs(largest) < 1e-15f) return;
  float const inverse_scale = -128.0f / largest;
  narrowing::put_half(1.0f / inverse_scale, block + 208);
  float const d = half_at(block + 208);
  for (int j = 0; j < 16; ++j) {
    int const scale = narrowing::clamped(narrowing::nearest(inverse_scale * scales[j]), -128, 127);
    block[192 + j] = static_cast<std::uint8_t>(scale);
    float const step = d * static_cast<float>(scale);
    if (step == 0.0f) continue;
    for (int i = 16 * j; i < 16 * j + 16; ++i) {
      int const code = narrowing::clamped(narrowing::nearest(weights[i] / step), -32, 31);
      codes[i] = static_cast<std::uint8_t>(code + 32);
    }
  }
  for (int i = 0; i < 256; ++i) {
    int const h = i / 128, j = i / 32 % 4, l = i % 32;
    std::uint8_t &low = block[64 * h + 32 * (j % 2) + l], &high = block[128 + 32 * h + l];
    low = static_cast<std::uint8_t>(low | (codes[i] & 15) << (j < 2 ? 0 : 4));
    high = static_cast<std::uint8_t>(high | codes[i] >> 4 << 2 * j);
  }
}

}  // namespace switchyard::quantised
