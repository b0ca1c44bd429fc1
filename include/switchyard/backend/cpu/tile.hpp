#pragma once

#include <switchyard/backend/cpu/integer_products.hpp>
#include <switchyard/backend/cpu/ranked_keys.hpp>
#include <switchyard/backend/quantised_products.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/element.hpp>
#include <switchyard/core/exponential.hpp>
#include <switchyard/core/masked_change.hpp>
#include <switchyard/core/operand.hpp>
#include <switchyard/core/view.hpp>
#include <switchyard/quantised/any_of.hpp>
#include <switchyard/quantised/blocks.hpp>
#include <switchyard/quantised/grouped.hpp>
#include <switchyard/quantised/scaled.hpp>

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace switchyard {

template <class Element, class Format>
struct quantised_matrix;

/// Which vector instructions the CPU backend uses.
enum class instruction_set {
  automatic,  ///< the best that this machine has
  portable,   ///< what the compiler may use anyway
  avx2,       ///< AVX2, FMA and F16C
  avx512,     ///< AVX-512 F, BW, DQ and VL
  /// And AMX's tiles, for bfloat16 elements of experts with 16 rows or more (and see `float_products`). Weights that are restored come as two
  /// bfloat16 parts, which lack 2^-18 of a weight at most; quantised ones meet the vectors of `avx512`. Rows between the two products are
  /// bfloat16 where there are tiles: outputs differ from those of `avx512` by 2.5e-3 (relative Frobenius distance, where rounding the output
  /// alone makes 1.7e-3), as much as those of any library that stores these rows in bfloat16.
  amx
};

/// How the CPU backend multiplies float elements of experts with many rows.
enum class float_products {
  exact,  ///< in float
  /// By AMX's tiles: each value is the sum of two bfloat16 values, and three products of those make one. Relative error of
  /// an expert some 6e-6 instead of 1e-7. Needs `instruction_set::amx`.
  three_of_bfloat16
};

}  // namespace switchyard

/// The register-tiled matrix product, once per instruction set. Its functions carry the target attribute, so a
/// program needs no architecture flag and one binary runs on every machine.
namespace switchyard::cpu {

/// Floats of depth that panels are multiplied by at a time, and from one feature's widened weights to the next: not a power
/// of two, for those would take the same places of the cache.
inline constexpr int panel_depth = 512, panel_pitch = panel_depth + 16;

/// Floats that an item of the products by panels takes on the stack, for its sums and a piece of the weights of one tile: what a
/// thread with a small stack has room for.
inline constexpr int item_floats = 12480;

/// A piece of the weights of some features, ready to be multiplied.
struct ready_weights {
  void const* first;
  std::int64_t stride;  ///< bytes from one feature to the next
};

/// Rows of weights that are fetched from memory while others are multiplied: none, or each as long as the product is deep.
struct fetched_rows {
  char const* first = nullptr;
  std::int64_t stride = 0;  ///< bytes
  int rows = 0;
  int element_bytes = 0;
};

/// The weights of some features that are multiplied together. This one restores them while they are read.
template <class Operand>
struct feature_tile {
  Operand const* weights = nullptr;
  int expert = 0, first = 0;
  int features = 0;  ///< 0: nothing to do
};
/// This one has them straight from the checkpoint.
template <class Element>
struct feature_tile<weight_view<Element>> {
  Element const* rows = nullptr;  ///< the first feature's
  std::int64_t row_stride = 0, column_stride = 0;
  int features = 0;  ///< 0: nothing to do
};

/// Up to `features` features of one expert's matrix, from `first` on.
template <class Operand>
feature_tile<Operand> features_of(Operand const& matrix, int expert, int first, int features) {
  return {&matrix, expert, first, features};
}
template <class Element>
feature_tile<weight_view<Element>> features_of(weight_view<Element> const& matrix, int expert, int first,
                                               int features) {
  return {matrix.at(expert, first, 0), matrix.row_stride, matrix.column_stride, features};
}

/// A stored element whose products with floats are summed in the order of those of float elements, so that they have their bits.
template <class Element>
struct __attribute__((may_alias)) summed_as_float {
  using stored = Element;
  Element value;
  explicit operator float() const { return static_cast<float>(value); }
};
/// What the rows of a product with such weights come as.
template <class Element>
struct row_element {
  using type = Element;
};
template <class Element>
struct row_element<summed_as_float<Element>> {
  using type = float;
};

/// A weight that was restored, as a float. A vector of them comes in the order of `Element`'s.
template <class Element>
struct __attribute__((may_alias)) widened {
  float value;
  explicit operator float() const { return value; }
};

/// Which of the next values a column of eight takes, by the bits of a mask that says which columns take one.
struct value_places {
  std::uint8_t of_byte[256][8] = {};

  constexpr value_places() {
    for (int mask = 0; mask < 256; ++mask) {
      for (int column = 0, next = 0; column < 8; ++column) {
        of_byte[mask][column] = static_cast<std::uint8_t>(next & 7);
        next += mask >> column & 1;
      }
    }
  }
};
inline constexpr value_places places_of_values;

/// What codes of 4 bits stand for, as the bits of bfloat16: nvcc 13.0 breaks down over the bits of a float in the initialiser of a template.
struct e2m1_codes {
  static constexpr std::uint32_t bits(std::uint32_t code) {
    constexpr std::uint32_t sizes[8] = {0x0000u, 0x3f00u, 0x3f80u, 0x3fc0u, 0x4000u, 0x4040u, 0x4080u, 0x40c0u};
    return sizes[code % 8] | (code >= 8 ? 0x8000u : 0u);
  }
};
struct e2m1_codes_without_minus_zero {
  static constexpr std::uint32_t bits(std::uint32_t code) { return code == 8 ? 0u : e2m1_codes::bits(code); }
};
template <int Zero>
struct codes_around {
  static constexpr std::uint32_t bits(std::uint32_t code) {
    int const value = static_cast<int>(code) - Zero;
    std::uint32_t const size = static_cast<std::uint32_t>(value < 0 ? -value : value);
    std::uint32_t exponent = 0;
    while (size >> exponent > 1) ++exponent;
    if (size == 0) return 0;
    return (value < 0 ? 0x8000u : 0u) | (127 + exponent) << 7 | (size << (7 - exponent) & 127u);
  }
};
/// The same as the bits of floats, and their upper two bytes, twice, for instructions that look up bytes.
template <class Codes>
struct code_values {
  alignas(64) std::uint32_t of_code[16] = {};
  std::uint8_t low[32] = {}, high[32] = {};
  constexpr code_values() {
    for (std::uint32_t i = 0; i < 32; ++i) {
      std::uint32_t const bits = Codes::bits(i % 16);
      of_code[i % 16] = bits << 16;
      low[i] = static_cast<std::uint8_t>(bits & 255u);
      high[i] = static_cast<std::uint8_t>(bits >> 8);
    }
  }
};
template <class Codes>
inline constexpr code_values<Codes> values_of_codes;

/// Where the codes and the scales of a row of quantised weights stand.
struct coded_row {
  std::uint8_t const* codes = nullptr;
  void const* scales = nullptr;  ///< null: among the codes
  float factor = 1.0f;           ///< of all its scales
};

/// Scales of up to `coded_piece` blocks of 32 weights as they were found, and as floats.
inline constexpr int coded_piece = 16;
struct found_scales {
  alignas(64) std::uint8_t bytes[2 * coded_piece];
  half halves[coded_piece];
};
struct ready_scales {
  alignas(64) float scale[2 * coded_piece] = {};  ///< of 32 weights each, or of 16
  float least[coded_piece] = {};                  ///< what is subtracted, of formats that have it
};

/// Most rows and features of a product without panels, whose sums are on the stack.
inline constexpr int item_rows = 32, item_features = 64;

/// How many rows ahead of those that are added others are fetched: see rows.inl.
inline constexpr int rows_ahead = 8;

/// A row of the groups that `group_rows` of tile.inl makes of `count` rows, or of a panel of that width.
struct row_among_others {
  float const* first;  ///< of all
  int row, count;
  std::int64_t depth;
  bool in_panel;
};

/// A part of the depth of a product; it begins at a multiple of 64.
struct depth_slice {
  std::int64_t depth, first, length;
};

/// Floats of memory that a row takes, alone or in a panel: its depth up to a multiple of 32, and a cache line, for rows that
/// are a power of two apart would take the same places of the cache; and what the smallest one takes in chunks of bytes.
inline constexpr std::int64_t least_row_floats = 176;
constexpr std::int64_t row_floats(std::int64_t depth) {
  std::int64_t const floats = divide_up(depth, 32) * 32 + 16;
  return floats < least_row_floats ? least_row_floats : floats;
}

/// Integers in the order of floats. What is no number comes after all others.
inline std::int32_t order_key(float value) {
  std::int32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return value != value ? 0x7fffffff : bits ^ ((bits >> 31) & 0x7fffffff);
}

// Accumulators stay in registers only if the loops over them are gone. nvcc's front end does not know the pragma.
#if defined(__CUDACC__)
#define SWITCHYARD_TILE_UNROLL
#else
#define SWITCHYARD_TILE_UNROLL _Pragma("GCC unroll 16")
#endif

// A test names a type here whose functions do what AMX's instructions do. The widest instruction sets then run on any
// processor: the vectors of AVX-512 are those that the compiler makes of smaller ones.
#if defined(SWITCHYARD_EMULATED_TILES)
#define SWITCHYARD_AVX512_TARGET
#else
#define SWITCHYARD_AVX512_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#endif

// Keeps what was loaded in a register: the compiler would load it again for each use.
#if defined(__x86_64__) && !defined(SWITCHYARD_EMULATED_TILES)
#define SWITCHYARD_TILE_LOADED(value) asm("" : "+v"(value))
#else
#define SWITCHYARD_TILE_LOADED(value)
#endif

#if defined(__x86_64__)
/// Whether this processor spreads words of 16 bits by a mask (AVX-512 VBMI2).
inline bool expands_words() {
  static bool const does = [] {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (ecx & (1u << 6)) != 0;
  }();
  return does;
}
#endif

#if defined(__x86_64__)
/// Whether this processor sums products of bytes in vectors of AVX-512 (AVX-512 VNNI), or of AVX2 (AVX-VNNI).
inline bool multiplies_bytes(instruction_set set) {
  static unsigned const does = [] {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0, of_avx2 = 0;
    unsigned const of_avx512 = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 ? ecx >> 11 & 1u : 0u;
    if (__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0) of_avx2 = eax >> 4 & 1u;
    return of_avx512 | of_avx2 << 1;
  }();
  return (does & (set >= instruction_set::avx512 ? 1u : 2u)) != 0;
}
#endif

namespace portable {
#define SWITCHYARD_TILE_TARGET
#define SWITCHYARD_TILE_BYTES 16
#define SWITCHYARD_TILE_REGISTERS 16
#define SWITCHYARD_TILE_ROWS 6
#define SWITCHYARD_PANEL_FEATURES 6
#include <switchyard/backend/cpu/tile.inl>
#undef SWITCHYARD_TILE_TARGET
#undef SWITCHYARD_TILE_BYTES
#undef SWITCHYARD_TILE_REGISTERS
#undef SWITCHYARD_TILE_ROWS
#undef SWITCHYARD_PANEL_FEATURES
}  // namespace portable

#if defined(__x86_64__)
namespace avx2 {
#define SWITCHYARD_TILE_HALF
#define SWITCHYARD_TILE_BY_HAND
#define SWITCHYARD_TILE_TARGET __attribute__((target("avx2,fma,f16c")))
#define SWITCHYARD_TILE_BYTES 32
#define SWITCHYARD_TILE_REGISTERS 16
#define SWITCHYARD_TILE_ROWS 6
#define SWITCHYARD_PANEL_FEATURES 6
#include <switchyard/backend/cpu/tile.inl>
#undef SWITCHYARD_TILE_TARGET
#undef SWITCHYARD_TILE_BYTES
#undef SWITCHYARD_TILE_REGISTERS
#undef SWITCHYARD_TILE_ROWS
#undef SWITCHYARD_PANEL_FEATURES
#undef SWITCHYARD_TILE_BY_HAND
#if defined(SWITCHYARD_EMULATED_TILES)
#undef SWITCHYARD_TILE_HALF
#endif
}  // namespace avx2

namespace avx512 {
#if !defined(SWITCHYARD_EMULATED_TILES)
#define SWITCHYARD_TILE_EXPANDS
#endif
#define SWITCHYARD_TILE_TARGET SWITCHYARD_AVX512_TARGET
#define SWITCHYARD_TILE_BYTES 64
#define SWITCHYARD_TILE_REGISTERS 32
#define SWITCHYARD_TILE_ROWS 7
#define SWITCHYARD_PANEL_FEATURES 12
#include <switchyard/backend/cpu/tile.inl>
#undef SWITCHYARD_TILE_TARGET
#undef SWITCHYARD_TILE_BYTES
#undef SWITCHYARD_TILE_REGISTERS
#undef SWITCHYARD_TILE_ROWS
#undef SWITCHYARD_PANEL_FEATURES
#undef SWITCHYARD_TILE_HALF
#undef SWITCHYARD_TILE_EXPANDS
}  // namespace avx512
#endif

#undef SWITCHYARD_AVX512_TARGET
#undef SWITCHYARD_TILE_UNROLL
#undef SWITCHYARD_TILE_LOADED

#if defined(__x86_64__)
/// Whether this processor converts half elements; not every compiler's list of features has it.
inline bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & (1u << 29)) != 0;
}
#endif

/// Whether this processor has AMX's tiles for bfloat16 and the system lets this process use them, for which Linux wants to
/// be asked.
inline bool has_amx() {
#if defined(__x86_64__) && defined(__linux__)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned for_bfloat16 = 1u << 22, tiles = 1u << 24;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & for_bfloat16) == 0 || (edx & tiles) == 0) return false;
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

}  // namespace switchyard::cpu

namespace switchyard {

/// The best instruction set of this machine; the processor is asked once per process.
inline instruction_set best_instruction_set() {
#if defined(SWITCHYARD_EMULATED_TILES)
  return instruction_set::amx;
#elif defined(__x86_64__)
  static instruction_set const best = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      return cpu::has_amx() ? instruction_set::amx : instruction_set::avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && cpu::has_f16c()) {
      return instruction_set::avx2;
    }
    return instruction_set::portable;
  }();
  return best;
#else
  return instruction_set::portable;
#endif
}

constexpr std::string_view name_of(instruction_set set) {
  switch (set) {
    case instruction_set::automatic: return "automatic";
    case instruction_set::portable: return "portable";
    case instruction_set::avx2: return "avx2";
    case instruction_set::avx512: return "avx512";
    case instruction_set::amx: return "amx";
  }
  return "unknown";
}

}  // namespace switchyard
