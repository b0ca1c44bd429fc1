// The end of tile.inl, once per instruction set: quantised weights, widened by vectors to the floats that `read` of their format gives.

/// How the weights of a format are widened by vectors; formats without one are widened by `read`.
///
///   order                      in which they come: `float`, as they stand, or `bfloat16`, even and odd ones apart
///   run                        blocks of 32 that are widened together
///   bytes                      of the codes of 256 weights, and of what stands between them
///   row(matrix, expert, row)   where a row begins
///   find(row, first, count, found)   puts the scales of so many blocks together; scalar, for the vectors' ports are busy
///   ready(row, first, count, found, ready)   makes floats of them
///   load(row, block, ready, number, to)      widens a run; `number` counts blocks within what is ready
template <class Format>
struct coded;

#if defined(SWITCHYARD_TILE_HALF)

#define SWITCHYARD_TILE_INLINE __attribute__((always_inline))

#if !defined(SWITCHYARD_TILE_EXPANDS)
typedef std::uint8_t code_bytes __attribute__((vector_size(32)));
#endif
typedef std::uint8_t sixteen_bytes __attribute__((vector_size(16), may_alias, aligned(1)));
typedef std::uint8_t lane_bytes __attribute__((vector_size(SWITCHYARD_TILE_BYTES / 4), may_alias, aligned(1)));

/// As many bytes as there are lanes, a word for each.
SWITCHYARD_TILE_TARGET inline words words_of_bytes(void const* from) {
  words result;
  asm("vpmovzxbd %1, %0" : "=v"(result) : "m"(*static_cast<lane_bytes const*>(from)));
  return result;
}
SWITCHYARD_TILE_TARGET inline floats floats_of_signed_bytes(void const* from) {
  integers result;
  asm("vpmovsxbd %1, %0" : "=v"(result) : "m"(*static_cast<lane_bytes const*>(from)));
  return __builtin_convertvector(result, floats);
}
SWITCHYARD_TILE_TARGET inline floats floats_of_bytes(void const* from) {
  return __builtin_convertvector(reinterpret_cast<integers>(words_of_bytes(from)), floats);
}
SWITCHYARD_TILE_TARGET inline void put_floats(floats values, float* to) {
  __builtin_memcpy(to, &values, sizeof values);
}

/// What codes are multiplied by, and what is subtracted from the product.
struct code_scale {
  float scale, least;
};

/// Sixteen bytes of two codes each: those of the low halves, and of the high ones.
template <class Codes, bool Least>
struct code_pairs;

#if defined(SWITCHYARD_TILE_EXPANDS)

SWITCHYARD_TILE_TARGET inline floats look_up(floats table, words index) {
  floats result;
  asm("vpermps %1, %2, %0" : "=v"(result) : "v"(table), "v"(index));
  return result;
}

template <class Codes, bool Least>
struct code_pairs {
  // Only the low four bits of an index count, and scaling the table scales all weights.
  SWITCHYARD_TILE_TARGET static floats table(code_scale const& of) {
    floats values;
    __builtin_memcpy(&values, values_of_codes<Codes>.of_code, sizeof values);
    if constexpr (Least) return values * of.scale - of.least;
    return values * of.scale;
  }
  SWITCHYARD_TILE_TARGET static void widen(std::uint8_t const* from, code_scale const& of_low,
                                           code_scale const& of_high, floats* low, floats* high, int stride) {
    (void)stride;
    words codes = words_of_bytes(from);
    *low = look_up(table(of_low), codes);
    *high = look_up(table(of_high), codes >> 4);
  }
};

#else

// clang-format off
SWITCHYARD_TILE_TARGET inline code_bytes look_up(code_bytes table, code_bytes index) {
  code_bytes result;
  asm("vpshufb %2, %1, %0" : "=x"(result) : "x"(table), "x"(index));
  return result;
}
// clang-format on

template <class Codes, bool Least>
struct code_pairs {
  /// The low halves of the first and the last eight bytes, then the high ones.
  SWITCHYARD_TILE_TARGET static void look_up_all(std::uint8_t const* from, floats (&to)[4]) {
    // Each half of the vector gets the low and the high codes of eight bytes, such that even bytes come in order.
    code_bytes const order = {0, 8,  1, 9,  2, 10, 3, 11, 0, 8,  1, 9,  2, 10, 3, 11,
                              4, 12, 5, 13, 6, 14, 7, 15, 4, 12, 5, 13, 6, 14, 7, 15};
    words const shift = {0, 0, 4, 4, 0, 0, 4, 4};
    code_bytes both, low_bytes, high_bytes, first, second;
    asm("vbroadcasti128 %1, %0" : "=x"(both) : "m"(*reinterpret_cast<sixteen_bytes const*>(from)));
    words const halves = reinterpret_cast<words>(look_up(both, order)) >> shift & 0x0f0f0f0fu;
    __builtin_memcpy(&low_bytes, values_of_codes<Codes>.low, sizeof low_bytes);
    __builtin_memcpy(&high_bytes, values_of_codes<Codes>.high, sizeof high_bytes);
    code_bytes const lower = look_up(low_bytes, reinterpret_cast<code_bytes>(halves)),
                     upper = look_up(high_bytes, reinterpret_cast<code_bytes>(halves));
    asm("vpunpcklbw %2, %1, %0" : "=x"(first) : "x"(lower), "x"(upper));
    asm("vpunpckhbw %2, %1, %0" : "=x"(second) : "x"(lower), "x"(upper));
    to[0] = reinterpret_cast<floats>(reinterpret_cast<words>(first) << 16);
    to[1] = reinterpret_cast<floats>(reinterpret_cast<words>(first) & 0xffff0000u);
    to[2] = reinterpret_cast<floats>(reinterpret_cast<words>(second) << 16);
    to[3] = reinterpret_cast<floats>(reinterpret_cast<words>(second) & 0xffff0000u);
  }
  SWITCHYARD_TILE_TARGET static floats scaled(floats values, code_scale const& of) {
    if constexpr (Least) return values * of.scale - of.least;
    return values * of.scale;
  }
  SWITCHYARD_TILE_TARGET static void widen(std::uint8_t const* from, code_scale const& of_low,
                                           code_scale const& of_high, floats* low, floats* high, int stride) {
    floats values[4];
    look_up_all(from, values);
    low[0] = scaled(values[0], of_low);
    low[stride] = scaled(values[1], of_low);
    high[0] = scaled(values[2], of_high);
    high[stride] = scaled(values[3], of_high);
  }
};

#endif

/// Vectors of 32 weights.
inline constexpr int coded_vectors = 32 / lanes;

/// The low halves of bytes, then the high ones.
template <class Codes>
SWITCHYARD_TILE_TARGET inline void widen_halves(std::uint8_t const* from, float scale, floats* to) {
  code_pairs<Codes, false>::widen(from, {scale, 0.0f}, {scale, 0.0f}, to, to + coded_vectors / 2, 1);
}
/// Low and high halves of bytes in turn, as even and odd weights.
template <class Codes>
SWITCHYARD_TILE_TARGET inline void widen_pairs(std::uint8_t const* from, float scale, floats* to) {
  code_pairs<Codes, false>::widen(from, {scale, 0.0f}, {scale, 0.0f}, to, to + 1, 2);
}

/// Scales that stand as halves among the codes, `bytes` apart.
SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE inline void find_halves(std::uint8_t const* from, int bytes, int count,
                                                                      half* to) {
  // Compilers would keep a register for each of the distances, and move them to and fro.
  asm("" : "+r"(from));
  SWITCHYARD_TILE_UNROLL
  for (int i = 0; i < count; ++i) __builtin_memcpy(to + i, from + i * bytes, sizeof(half));
}
SWITCHYARD_TILE_TARGET inline void widen_found(half const* from, float* to) {
  for (int i = 0; i < coded_piece; i += lanes) put_floats(stored<half>::load(from + i, 0), to + i);
}
/// Powers of two, as `quantised::e8m0` has them.
SWITCHYARD_TILE_TARGET inline void widen_e8m0(std::uint8_t const* from, float* to) {
  for (int i = 0; i < coded_piece; i += lanes) {
    words const codes = words_of_bytes(from + i);
    words const special = reinterpret_cast<words>(codes == 0u) | reinterpret_cast<words>(codes == 255u);
    put_floats(reinterpret_cast<floats>(codes << 23 | (special & 0x00400000u)), to + i);
  }
}

template <class Block>
struct coded_blocks {
  using matrix = quantised::block_matrix<Block>;
  using order = float;
  static constexpr int run = 1, bytes = Block::bytes * 256 / Block::weights;
  SWITCHYARD_TILE_TARGET static coded_row row(matrix const& w, int expert, int row) {
    return {w.data + expert * w.expert_stride + row * w.row_stride};
  }
};

template <>
struct coded<quantised::block_matrix<quantised::q8_0>> : coded_blocks<quantised::q8_0> {
  SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE static void find(coded_row const& row, int first, int count,
                                                                 found_scales& found) {
    find_halves(row.codes + first * 34, 34, count, found.halves);
  }
  SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE static void ready(coded_row const&, int, int, found_scales const& found,
                                                                  ready_scales& to) {
    widen_found(found.halves, to.scale);
  }
  SWITCHYARD_TILE_TARGET static void load(coded_row const& row, int block, ready_scales const& scales, int number,
                                          floats* to) {
    std::uint8_t const* const codes = row.codes + block * 34 + 2;
    SWITCHYARD_TILE_UNROLL
    for (int v = 0; v < coded_vectors; ++v) to[v] = floats_of_signed_bytes(codes + v * lanes) * scales.scale[number];
  }
};

template <>
struct coded<quantised::block_matrix<quantised::q4_0>> : coded_blocks<quantised::q4_0> {
  SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE static void find(coded_row const& row, int first, int count,
                                                                 found_scales& found) {
    find_halves(row.codes + first * 18, 18, count, found.halves);
  }
  SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE static void ready(coded_row const&, int, int, found_scales const& found,
                                                                  ready_scales& to) {
    widen_found(found.halves, to.scale);
  }
  SWITCHYARD_TILE_TARGET static void load(coded_row const& row, int block, ready_scales const& scales, int number,
                                          floats* to) {
    widen_halves<codes_around<8>>(row.codes + block * 18 + 2, scales.scale[number], to);
  }
};

template <>
struct coded<quantised::block_matrix<quantised::mxfp4_halves>> : coded_blocks<quantised::mxfp4_halves> {
  SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE static void find(coded_row const& row, int first, int count,
                                                                 found_scales& found) {
    std::uint8_t const* from = row.codes + first * 17;
    asm("" : "+r"(from));
    SWITCHYARD_TILE_UNROLL
    for (int i = 0; i < count; ++i) found.bytes[i] = from[i * 17];
  }
  SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE static void ready(coded_row const&, int, int, found_scales const& found,
                                                                  ready_scales& to) {
    widen_e8m0(found.bytes, to.scale);
  }
  SWITCHYARD_TILE_TARGET static void load(coded_row const& row, int block, ready_scales const& scales, int number,
                                          floats* to) {
    widen_halves<e2m1_codes_without_minus_zero>(row.codes + block * 17 + 1, scales.scale[number], to);
  }
};

template <>
struct coded<quantised::block_matrix<quantised::q4_K>> : coded_blocks<quantised::q4_K> {
  static constexpr int run = 2;
  // The scales of eight blocks after another, their minima 16 bytes behind.
  SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE static void find(coded_row const& row, int first, int count,
                                                                 found_scales& found) {
    for (int i = 0; i < (count + 7) / 8; ++i) {
      std::uint8_t const* const block = row.codes + (first / 8 + i) * 144;
      std::uint32_t a, b, c;
      __builtin_memcpy(&a, block + 4, 4);
      __builtin_memcpy(&b, block + 8, 4);
      __builtin_memcpy(&c, block + 12, 4);
      std::uint32_t const packed[4] = {a & 0x3f3f3f3fu, (c & 0x0f0f0f0fu) | (a >> 2 & 0x30303030u), b & 0x3f3f3f3fu,
                                       (c >> 4 & 0x0f0f0f0fu) | (b >> 2 & 0x30303030u)};
      __builtin_memcpy(found.bytes + 8 * i, packed, 8);
      __builtin_memcpy(found.bytes + 16 + 8 * i, packed + 2, 8);
      __builtin_memcpy(found.halves + i, block, 2);
      __builtin_memcpy(found.halves + 2 + i, block + 2, 2);
    }
  }
  SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE static void ready(coded_row const&, int, int, found_scales const& found,
                                                                  ready_scales& to) {
#if defined(SWITCHYARD_TILE_EXPANDS)
    floats const of_blocks = stored<half>::load(found.halves, 0);
    words const first = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
    put_floats(floats_of_bytes(found.bytes) * look_up(of_blocks, first), to.scale);
    put_floats(floats_of_bytes(found.bytes + 16) * look_up(of_blocks, first + 2), to.least);
#else
    for (int i = 0; i < 2; ++i) {
      float const d = static_cast<float>(found.halves[i]), least = static_cast<float>(found.halves[2 + i]);
      put_floats(floats_of_bytes(found.bytes + 8 * i) * d, to.scale + 8 * i);
      put_floats(floats_of_bytes(found.bytes + 16 + 8 * i) * least, to.least + 8 * i);
    }
#endif
  }
  SWITCHYARD_TILE_TARGET static void load(coded_row const& row, int block, ready_scales const& scales, int number,
                                          floats* to) {
    using pairs = code_pairs<codes_around<0>, true>;
    std::uint8_t const* const codes = row.codes + block / 8 * 144 + 16 + block % 8 * 16;
    code_scale const low{scales.scale[number], scales.least[number]},
        high{scales.scale[number + 1], scales.least[number + 1]};
    pairs::widen(codes, low, high, to, to + coded_vectors, 1);
    pairs::widen(codes + 16, low, high, to + coded_vectors / 2, to + coded_vectors + coded_vectors / 2, 1);
  }
};

template <>
struct coded<quantised::mxfp4> {
  using order = bfloat16;
  static constexpr int run = 1, bytes = 128;
  SWITCHYARD_TILE_TARGET static coded_row row(quantised::mxfp4 const& w, int expert, int row) {
    std::int64_t const line = (std::int64_t{expert} * w.rows + row) * w.row_stride;
    return {w.blocks + line * (w.columns / 2), w.scales + line * (w.columns / 32)};
  }
  SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE static void find(coded_row const& row, int first, int count,
                                                                 found_scales& found) {
    __builtin_memcpy(found.bytes, static_cast<std::uint8_t const*>(row.scales) + first,
                     static_cast<std::size_t>(count));
  }
  SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE static void ready(coded_row const&, int, int, found_scales const& found,
                                                                  ready_scales& to) {
    widen_e8m0(found.bytes, to.scale);
  }
  SWITCHYARD_TILE_TARGET static void load(coded_row const& row, int block, ready_scales const& scales, int number,
                                          floats* to) {
    widen_pairs<e2m1_codes>(row.codes + block * 16, scales.scale[number], to);
  }
};

template <>
struct coded<quantised::block_matrix<quantised::q6_K>> : coded_blocks<quantised::q6_K> {
  // The scales of 16 weights each.
  SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE static void find(coded_row const& row, int first, int count,
                                                                 found_scales& found) {
    for (int i = 0; i < (count + 7) / 8; ++i) {
      std::uint8_t const* const block = row.codes + (first / 8 + i) * 210;
      __builtin_memcpy(found.bytes + 16 * i, block + 192, 16);
      __builtin_memcpy(found.halves + i, block + 208, 2);
    }
  }
  SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE static void ready(coded_row const&, int, int, found_scales const& found,
                                                                  ready_scales& to) {
    for (int i = 0; i < 2; ++i) {
      float const d = static_cast<float>(found.halves[i]);
      for (int k = 16 * i; k < 16 * i + 16; k += lanes) {
        put_floats(floats_of_signed_bytes(found.bytes + k) * d, to.scale + k);
      }
    }
  }
  SWITCHYARD_TILE_TARGET static void load(coded_row const& row, int block, ready_scales const& scales, int number,
                                          floats* to) {
    typedef std::uint32_t eight_words __attribute__((vector_size(32)));
    typedef std::int8_t many_bytes __attribute__((vector_size(32)));
    int const half = block / 4 % 2, quarter = block % 4;
    std::uint8_t const* const codes = row.codes + block / 8 * 210;
    eight_words low, high;
    __builtin_memcpy(&low, codes + 64 * half + quarter % 2 * 32, sizeof low);
    __builtin_memcpy(&high, codes + 128 + 32 * half, sizeof high);
    eight_words const all = (low >> (quarter / 2 * 4) & 0x0f0f0f0fu) | ((high >> (2 * quarter) & 0x03030303u) << 4);
    many_bytes const values = reinterpret_cast<many_bytes>(all) - 32;
    alignas(32) std::int8_t memory[32];
    __builtin_memcpy(memory, &values, sizeof values);
    SWITCHYARD_TILE_UNROLL
    for (int v = 0; v < coded_vectors; ++v) {
      to[v] = floats_of_signed_bytes(memory + v * lanes) * scales.scale[2 * number + v * lanes / 16];
    }
  }
};

/// Codes of a row one after the other; no scales between them.
template <class Format, int Bytes>
struct coded_lines {
  static constexpr int run = 1, bytes = Bytes;
  SWITCHYARD_TILE_TARGET static std::int64_t line(Format const& w, int expert, int row) {
    return std::int64_t{expert} * w.rows + row;
  }
  SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE static void find(coded_row const&, int, int, found_scales&) {}
  SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE static void ready(coded_row const&, int, int, found_scales const&,
                                                                  ready_scales&) {}
};

template <class Scale>
struct coded<quantised::int8_channel<Scale>> : coded_lines<quantised::int8_channel<Scale>, 256> {
  using order = float;
  SWITCHYARD_TILE_TARGET static coded_row row(quantised::int8_channel<Scale> const& w, int expert, int row) {
    std::int64_t const line = coded::line(w, expert, row);
    return {reinterpret_cast<std::uint8_t const*>(w.weight) + line * w.columns, nullptr,
            static_cast<float>(w.scale[line])};
  }
  SWITCHYARD_TILE_TARGET static void load(coded_row const& row, int block, ready_scales const&, int, floats* to) {
    SWITCHYARD_TILE_UNROLL
    for (int v = 0; v < coded_vectors; ++v) {
      to[v] = floats_of_signed_bytes(row.codes + block * 32 + v * lanes) * row.factor;
    }
  }
};

/// Codes of E4M3 times a factor of 256 of them: as halves with the same exponent they are 2^-8 of what they are.
SWITCHYARD_TILE_TARGET inline void widen_e4m3(std::uint8_t const* from, float factor, floats* to) {
  typedef std::uint16_t shorts __attribute__((vector_size(SWITCHYARD_TILE_BYTES)));
  typedef std::uint8_t half_bytes __attribute__((vector_size(SWITCHYARD_TILE_BYTES / 2), may_alias, aligned(1)));
  SWITCHYARD_TILE_UNROLL
  for (int i = 0; i < coded_vectors; i += 2) {
    shorts wide;
    asm("vpmovsxbw %1, %0" : "=v"(wide) : "m"(*reinterpret_cast<half_bytes const*>(from + i * lanes)));
    shorts const bits = wide << 7 & 0xbfff;
    shorts const is_nan = reinterpret_cast<shorts>((bits & 0x3f80) == 0x3f80);
    shorts const all = bits | (is_nan & 0x7c00);
    half halves[2 * lanes];
    __builtin_memcpy(static_cast<void*>(halves), &all, sizeof all);
    to[i] = stored<half>::load(halves, 0) * factor;
    to[i + 1] = stored<half>::load(halves, 1) * factor;
  }
}
/// Whether 256 times a scale is a number where the scale is.
inline bool is_usual_scale(float scale) { return !(scale >= 0x1p120f || scale <= -0x1p120f); }

template <class Scale>
struct coded<quantised::fp8_tensor<Scale>> : coded_lines<quantised::fp8_tensor<Scale>, 256> {
  using order = float;
  static bool is_usual(quantised::fp8_tensor<Scale> const& w, int expert, int, int) {
    return is_usual_scale(static_cast<float>(w.scale[expert]));
  }
  SWITCHYARD_TILE_TARGET static coded_row row(quantised::fp8_tensor<Scale> const& w, int expert, int row) {
    return {w.weight + coded::line(w, expert, row) * w.columns, nullptr, 256.0f * static_cast<float>(w.scale[expert])};
  }
  SWITCHYARD_TILE_TARGET static void load(coded_row const& row, int block, ready_scales const&, int, floats* to) {
    widen_e4m3(row.codes + block * 32, row.factor, to);
  }
};

template <>
struct coded<quantised::fp8_block> : coded_lines<quantised::fp8_block, 256> {
  using order = float;
  SWITCHYARD_TILE_TARGET static float const* scales(quantised::fp8_block const& w, int expert, int row) {
    return w.scale_inv + expert * w.squares() + row / w.side * divide_up(w.columns, w.side);
  }
  static bool is_usual(quantised::fp8_block const& w, int expert, int row, int rows) {
    bool result = true;
    for (int r = row / w.side * w.side; r < row + rows; r += w.side) {
      float const* const of_row = scales(w, expert, r);
      for (int i = 0; i < divide_up(w.columns, w.side); ++i) result = result && is_usual_scale(of_row[i]);
    }
    return result;
  }
  SWITCHYARD_TILE_TARGET static coded_row row(quantised::fp8_block const& w, int expert, int row) {
    return {w.weight + line(w, expert, row) * w.columns, scales(w, expert, row)};
  }
  // Four blocks have one.
  SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE static void ready(coded_row const& row, int first, int count,
                                                                  found_scales const&, ready_scales& to) {
    for (int i = 0; i < count; i += 4) {
      float const each = 256.0f * static_cast<float const*>(row.scales)[(first + i) >> 2];
      quad const scale = {each, each, each, each};
      __builtin_memcpy(to.scale + i, &scale, sizeof scale);
    }
  }
  SWITCHYARD_TILE_TARGET static void load(coded_row const& row, int block, ready_scales const& scales, int number,
                                          floats* to) {
    widen_e4m3(row.codes + block * 32, scales.scale[number], to);
  }
};

template <>
struct coded<quantised::int4_packed> : coded_lines<quantised::int4_packed, 128> {
  using order = bfloat16;
  SWITCHYARD_TILE_TARGET static coded_row row(quantised::int4_packed const& w, int expert, int row) {
    std::int64_t const at = line(w, expert, row);
    return {reinterpret_cast<std::uint8_t const*>(w.weight + at * (w.columns / 8)), w.scale + at * (w.columns / 32)};
  }
  SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE static void find(coded_row const& row, int first, int count,
                                                                 found_scales& found) {
    __builtin_memcpy(found.bytes, static_cast<bfloat16 const*>(row.scales) + first,
                     static_cast<std::size_t>(count) * sizeof(bfloat16));
  }
  SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE static void ready(coded_row const&, int, int, found_scales const& found,
                                                                  ready_scales& to) {
    for (int i = 0; i < coded_piece; i += lanes) {
      put_floats(reinterpret_cast<floats>(widen_words(found.bytes + 2 * i) << 16), to.scale + i);
    }
  }
  SWITCHYARD_TILE_TARGET static void load(coded_row const& row, int block, ready_scales const& scales, int number,
                                          floats* to) {
    widen_pairs<codes_around<8>>(row.codes + block * 16, scales.scale[number], to);
  }
};

template <quantised::global_scale Global>
struct coded<quantised::nvfp4_of<Global>> : coded_lines<quantised::nvfp4_of<Global>, 128> {
  using order = bfloat16;
  SWITCHYARD_TILE_TARGET static coded_row row(quantised::nvfp4_of<Global> const& w, int expert, int row) {
    std::int64_t const line = coded::line(w, expert, row);
    return {w.weight + line * (w.columns / 2), w.scale + line * (w.columns / 16), w.global[expert]};
  }
  SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE static void find(coded_row const& row, int first, int count,
                                                                 found_scales& found) {
    __builtin_memcpy(found.bytes, static_cast<std::uint8_t const*>(row.scales) + 2 * first,
                     static_cast<std::size_t>(2 * count));
  }
  SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE static void ready(coded_row const& row, int, int,
                                                                  found_scales const& found, ready_scales& to) {
    widen_scales(found, to);
    for (int i = 0; i < 2 * coded_piece; i += lanes) {
      put_floats(scaled(load_floats(to.scale + i), row), to.scale + i);
    }
  }
  /// Without the factor of the matrix.
  SWITCHYARD_TILE_TARGET static void widen_scales(found_scales const& found, ready_scales& to) {
    floats of_blocks[coded_vectors];
    widen_e4m3(found.bytes, 256.0f, of_blocks);
    SWITCHYARD_TILE_UNROLL
    for (int i = 0; i < coded_vectors; ++i) put_floats(of_blocks[i], to.scale + i * lanes);
  }
  template <class Values>
  SWITCHYARD_TILE_TARGET static Values scaled(Values values, coded_row const& row) {
    if constexpr (Global == quantised::global_scale::divides) return values / row.factor;
    return values * row.factor;
  }
  SWITCHYARD_TILE_TARGET static void load(coded_row const& row, int block, ready_scales const& scales, int number,
                                          floats* to) {
    constexpr bool divides = Global == quantised::global_scale::divides;
    using pairs = code_pairs<std::conditional_t<divides, e2m1_codes, e2m1_codes_without_minus_zero>, false>;
    std::uint8_t const* const codes = row.codes + block * 16;
#if defined(SWITCHYARD_TILE_EXPANDS)
    floats of_lanes;
    asm("vbroadcastss %1, %0" : "=v"(of_lanes) : "m"(scales.scale[2 * number]));
    asm("vbroadcastss %1, %0%{%2%}"
        : "+v"(of_lanes)
        : "m"(scales.scale[2 * number + 1]), "Yk"(static_cast<std::uint16_t>(0xff00)));
    pairs::widen(codes, {1.0f, 0.0f}, {1.0f, 0.0f}, to, to + 1, 2);
    to[0] *= of_lanes;
    to[1] *= of_lanes;
#else
    floats values[4];
    pairs::look_up_all(codes, values);
    to[0] = values[0] * scales.scale[2 * number];
    to[1] = values[2] * scales.scale[2 * number];
    to[2] = values[1] * scales.scale[2 * number + 1];
    to[3] = values[3] * scales.scale[2 * number + 1];
#endif
  }
};

template <class Format>
concept is_coded = requires {
  coded<Format>::run;
};

/// Two vectors of even and odd elements as elements in their order: the first or the second half of them.
template <int Half, int... Lane>
SWITCHYARD_TILE_TARGET inline floats in_turn(floats even, floats odd, std::integer_sequence<int, Lane...>) {
  constexpr int first = Half * lanes / 2;
#if defined(__clang__)
  return __builtin_shufflevector(even, odd, (first + Lane / 2 + Lane % 2 * lanes)...);
#else
  return __builtin_shuffle(even, odd, words{static_cast<std::uint32_t>(first + Lane / 2 + Lane % 2 * lanes)...});
#endif
}
/// The same format with its weights as they stand.
template <class Format>
struct coded_in_order : coded<Format> {
  using order = float;
  SWITCHYARD_TILE_TARGET static void load(coded_row const& row, int block, ready_scales const& scales, int number,
                                          floats* to) {
    coded<Format>::load(row, block, scales, number, to);
    if constexpr (!std::is_same_v<typename coded<Format>::order, float>) {
      constexpr auto all = std::make_integer_sequence<int, lanes>{};
      SWITCHYARD_TILE_UNROLL
      for (int v = 0; v < coded_vectors; v += 2) {
        floats const even = to[v], odd = to[v + 1];
        to[v] = in_turn<0>(even, odd, all);
        to[v + 1] = in_turn<1>(even, odd, all);
      }
    }
  }
};

/// The scales of up to a piece of blocks. A whole piece is usual, and the compiler then knows how long it is.
template <class Coded>
SWITCHYARD_TILE_TARGET inline void find_scales(coded_row const& row, int first, int count, found_scales& found) {
  if (count >= coded_piece) return Coded::find(row, first, coded_piece, found);
  Coded::find(row, first, count, found);
}

/// to[the position of k] = weight k of a row, for `blocks` blocks from `first` on.
template <class Coded>
SWITCHYARD_TILE_TARGET void widen_blocks(coded_row const& row, int first, int blocks, float* to) {
  found_scales found = {};
  ready_scales scales;
  for (int begin = 0; begin < blocks; begin += coded_piece) {
    int const count = blocks - begin < coded_piece ? blocks - begin : coded_piece;
    find_scales<Coded>(row, first + begin, count, found);
    Coded::ready(row, first + begin, count, found, scales);
    for (int b = 0; b < count; b += Coded::run) {
      floats weights[Coded::run * coded_vectors];
      Coded::load(row, first + begin + b, scales, b, weights);
      SWITCHYARD_TILE_UNROLL
      for (int v = 0; v < Coded::run * coded_vectors; ++v, to += lanes) put_floats(weights[v], to);
    }
  }
}

/// Fetches what stands at some blocks of a row to the second-level cache.
template <class Coded, int Count>
SWITCHYARD_TILE_TARGET inline void fetch_blocks(coded_row const& row, int block) {
  std::uint8_t const* const from = row.codes + std::int64_t{block} * Coded::bytes / 8;
  SWITCHYARD_TILE_UNROLL
  for (int byte = 0; byte < Coded::bytes * Count / 8; byte += 64) __builtin_prefetch(from + byte, 0, 2);
}

/// products[r * Streams + s] = row r . the feature of stream s, for a group of `Rows` rows, over `blocks` blocks of 32 weights. `found` has the
/// scales of their first piece, and gets those of the features `later`, whose codes are fetched meanwhile.
template <class Coded, int Rows, int Streams>
SWITCHYARD_TILE_TARGET void multiply_coded_group(float const* rows, coded_row const (&weights)[Streams],
                                                 coded_row const (&later)[Streams], int blocks,
                                                 found_scales (&found)[Streams], float* products) {
  constexpr int vectors = Coded::run * coded_vectors;
  floats sums[Rows * Streams] = {};
  ready_scales scales[Streams];
  for (int first = 0; first < blocks; first += coded_piece) {
    int const left = blocks - first, count = left < coded_piece ? left : coded_piece;
    for (int s = 0; s < Streams; ++s) Coded::ready(weights[s], first, count, found[s], scales[s]);
    // Found a piece ahead: a vector of what was just stored one by one would wait for it.
    bool const is_last = left <= coded_piece;
    int const next = is_last ? 0 : first + coded_piece, next_left = blocks - next;
    for (int s = 0; s < Streams; ++s) {
      find_scales<Coded>(is_last ? later[s] : weights[s], next, next_left, found[s]);
    }
    auto const add_run = [&](int b) SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE {
      SWITCHYARD_TILE_UNROLL
      for (int s = 0; s < Streams; ++s) {
        floats right[vectors];
        Coded::load(weights[s], first + b, scales[s], b, right);
        SWITCHYARD_TILE_UNROLL
        for (int v = 0; v < vectors; ++v) {
          SWITCHYARD_TILE_UNROLL
          for (int r = 0; r < Rows; ++r) sums[r * Streams + s] += load_floats(rows + (v * Rows + r) * lanes) * right[v];
        }
      }
      rows += vectors * Rows * lanes;
    };
    constexpr int together = Rows > 4 ? 2 : 4;  // blocks: more rows would not fit the registers
    int b = 0;
    for (; b + together <= count; b += together) {
      SWITCHYARD_TILE_UNROLL
      for (int s = 0; s < Streams; ++s) fetch_blocks<Coded, together>(later[s], first + b);
      SWITCHYARD_TILE_UNROLL
      for (int i = 0; i < together; i += Coded::run) add_run(b + i);
    }
    for (; b < count; b += Coded::run) add_run(b);
  }
  put_sums(sums, products);
}

#if defined(SWITCHYARD_TILE_EXPANDS)
#include <switchyard/backend/cpu/dealt.inl>
#else
struct dealt;
template <class Format>
concept is_dealt = false;
#endif

/// sums[r * Streams + s] (+)= row r . the weights of stream s, as many as are widened at a time: the same additions.
template <int Rows, int Streams>
SWITCHYARD_TILE_TARGET void add_widened_piece(float const* rows, float const* weights, int length, bool first,
                                              float* sums) {
  floats sum[Rows * Streams] = {};
  SWITCHYARD_TILE_UNROLL
  for (int i = 0; i < Rows * Streams; ++i) {
    if (!first) sum[i] = load_floats(sums + i * lanes);
  }
  for (int k = 0; k < length; k += lanes, rows += Rows * lanes) {
    floats right[Streams];
    SWITCHYARD_TILE_UNROLL
    for (int s = 0; s < Streams; ++s) right[s] = load_floats(weights + s * panel_pitch + k);
    SWITCHYARD_TILE_UNROLL
    for (int r = 0; r < Rows; ++r) {
      floats left = load_floats(rows + r * lanes);
      SWITCHYARD_TILE_LOADED(left);
      SWITCHYARD_TILE_UNROLL
      for (int s = 0; s < Streams; ++s) sum[r * Streams + s] += left * right[s];
    }
  }
  SWITCHYARD_TILE_UNROLL
  for (int i = 0; i < Rows * Streams; ++i) put_floats(sum[i], sums + i * lanes);
}

/// Some features of a matrix in a format.
template <class Format>
struct coded_tile {
  Format const* matrix = nullptr;
  int expert = 0, first = 0, features = 0;
};

/// Features that are multiplied together beside so many rows.
constexpr int coded_features_beside(int rows) {
  if (lanes < 16) return rows <= 2 ? 4 : rows <= 4 ? 2 : 1;
  return rows <= 5 ? 4 : 3;
}

/// products[r * Streams + s] = row r . the feature of stream s, by the kernel of a format.
template <class Coded, class Format, int Rows, int Streams>
SWITCHYARD_TILE_TARGET inline void multiply_group_of(float const* rows, coded_row const (&weights)[Streams],
                                                     coded_row const (&later)[Streams], int blocks,
                                                     found_scales (&found)[Streams], float* products) {
  if constexpr (std::is_same_v<Coded, dealt>) {
    multiply_dealt_group<Format, Rows, Streams>(rows, weights, later, blocks, found, products);
  } else {
    multiply_coded_group<Coded, Rows, Streams>(rows, weights, later, blocks, found, products);
  }
}

/// to[r][f] = row r . feature f for groups of `Rows` rows and of one less, and the features of a tile. Each group meets weights while they are
/// widened, for that is faster than to bring them from the first-level cache.
template <class Coded, class Format, int Rows = most_rows>
SWITCHYARD_TILE_TARGET void multiply_rows_by_coded(float const* rows, int row_count, std::int64_t depth,
                                                   coded_tile<Format> const& tile, coded_tile<Format> const& next,
                                                   float* to, std::int64_t stride) {
  int const groups = groups_of_rows(row_count);
  if constexpr (Rows > 1) {
    if (row_count <= groups * (Rows - 1)) {
      return multiply_rows_by_coded<Coded, Format, Rows - 1>(rows, row_count, depth, tile, next, to, stride);
    }
  }
  using format = coded<Format>;
  constexpr int fewer = Rows > 1 ? Rows - 1 : 1, streams = coded_features_beside(Rows);
  int const blocks = static_cast<int>(depth / 32);
  int const each = (tile.features + streams - 1) / streams, each_next = (next.features + streams - 1) / streams;
  found_scales found[streams] = {};
  coded_row now[streams], later[streams];
  for (int i = 0; i < each; ++i) {
    for (int s = 0; s < streams; ++s) {
      int const f = s * each + i < tile.features ? s * each + i : tile.features - 1;
      now[s] = format::row(*tile.matrix, tile.expert, tile.first + f);
      if (i == 0) find_scales<format>(now[s], 0, blocks, found[s]);
      later[s] = now[s];
      if (i + 1 < each) {
        if (f + 1 < tile.features) later[s] = format::row(*tile.matrix, tile.expert, tile.first + f + 1);
      } else if (s * each_next < next.features) {
        later[s] = format::row(*next.matrix, next.expert, next.first + s * each_next);
      }
    }
    for (int g = 0; g < groups; ++g) {
      row_group const group = group_of_rows(row_count, g);
      float const* const from = rows + group.first * row_floats(depth);
      auto const& then = g + 1 < groups ? now : later;
      float products[Rows * streams + 3] = {};
      if (group.rows == Rows) {
        multiply_group_of<Coded, Format, Rows, streams>(from, now, then, blocks, found, products);
      } else {
        multiply_group_of<Coded, Format, fewer, streams>(from, now, then, blocks, found, products);
      }
      for (int s = 0; s < streams && s * each + i < tile.features; ++s) {
        float* const column = to + group.first * stride + s * each + i;
        // There are no more, but the compiler does not know that.
        for (int r = 0; r < group.rows && r < Rows; ++r) column[r * stride] = products[r * streams + s];
      }
    }
  }
}

/// `read` and `multiply` of `restored`, of a matrix in a format.
template <class Coded, class Format>
SWITCHYARD_TILE_TARGET void read_coded(Format const& matrix, int expert, int row, std::int64_t first, int count,
                                       float* to) {
  int const column = static_cast<int>(first);
  int blocks = column % 256 == 0 ? count / 32 / Coded::run * Coded::run : 0;
  if constexpr (requires { Coded::is_usual(matrix, expert, row, 1); }) {
    if (!Coded::is_usual(matrix, expert, row, 1)) blocks = 0;
  }
  widen_blocks<Coded>(Coded::row(matrix, expert, row), column / 32, blocks, to);
  for (int k = 32 * blocks; k < count; k += Format::granule) {
    float rest[Format::granule];
    int const length = count - k < Format::granule ? count - k : Format::granule;
    matrix.read(expert, row, column + k, length, rest);
    for (int i = 0; i < length; ++i) to[depth_position<typename Coded::order>(k + i, count)] = rest[i];
  }
}
template <class Coded, class Format>
SWITCHYARD_TILE_TARGET bool multiply_coded(float const* rows, int row_count, std::int64_t depth,
                                           coded_tile<Format> const& tile, coded_tile<Format> const& next, float* to,
                                           std::int64_t stride) {
  if (depth % (32 * Coded::run) != 0) return false;
  if constexpr (requires { Coded::is_usual(*tile.matrix, 0, 0, 1); }) {
    if (!Coded::is_usual(*tile.matrix, tile.expert, tile.first, tile.features)) return false;
  }
  multiply_rows_by_coded<Coded>(rows, row_count, depth, tile, next, to, stride);
  return true;
}

template <class Element, class Format>
requires is_coded<Format>
struct restored<quantised_matrix<Element, Format>> {
  using operand = quantised_matrix<Element, Format>;
  using order = typename coded<Format>::order;

  SWITCHYARD_TILE_TARGET static void read(operand const& weights, int expert, int row, std::int64_t first, int count,
                                          float* to) {
    read_coded<coded<Format>>(weights.of, expert, row, first, count, to);
  }
  SWITCHYARD_TILE_TARGET static bool multiply(float const* rows, int row_count, depth_slice const& piece,
                                              feature_tile<operand> const& tile, feature_tile<operand> const& next,
                                              float* to, std::int64_t stride) {
    coded_tile<Format> then;
    if (next.features > 0) then = {&next.weights->of, next.expert, next.first, next.features};
    return multiply_coded<coded<Format>>(rows, row_count, piece.depth,
                                         coded_tile<Format>{&tile.weights->of, tile.expert, tile.first, tile.features},
                                         then, to, stride);
  }
  static constexpr bool multiplies_changes = false;

#if defined(SWITCHYARD_TILE_EXPANDS)
  /// The kernels of few rows in the order of `dealt`.
  static void take_dealt(auto& kernels) requires(is_dealt<Format>) {
    kernels.group = &group_dealt;
    kernels.put = &put_dealt;
    kernels.keep_largest = &keep_largest_dealt;
    kernels.multiply = &multiply_dealt;
  }

 private:
  static bool fits_dealt(std::int64_t depth) { return depth % dealt_depth == 0; }
  using element = typename row_element<Element>::type;
  SWITCHYARD_TILE_TARGET static void group_dealt(element const* const* rows, int row_count, std::int64_t depth,
                                                 float* to) {
    if (!fits_dealt(depth)) return group_rows_in_order<element, order>(rows, row_count, depth, to);
    group_rows_in_order<element, dealt>(rows, row_count, depth, to);
  }
  SWITCHYARD_TILE_TARGET static void put_dealt(float const* values, int count, std::int64_t first, int row,
                                               int row_count, std::int64_t depth, float* to) {
    if (!fits_dealt(depth)) return put_in_group<order>(values, count, first, row, row_count, depth, to);
    put_in_group<dealt>(values, count, first, row, row_count, depth, to);
  }
  SWITCHYARD_TILE_TARGET static void keep_largest_dealt(float* rows, int row_count, std::int64_t depth, int kept,
                                                        float const* factors) {
    if (!fits_dealt(depth)) return keep_largest_in_group<order>(rows, row_count, depth, kept, factors);
    keep_largest_in_group<dealt>(rows, row_count, depth, kept, factors);
  }
  SWITCHYARD_TILE_TARGET static void multiply_dealt(float const* rows, int row_count, depth_slice const& piece,
                                                    feature_tile<operand> const& tile,
                                                    feature_tile<operand> const& next, float* to,
                                                    std::int64_t stride) {
    if (!fits_dealt(piece.depth)) {
      return multiply_rows_by_restored(rows, row_count, piece, tile, next, to, stride);
    }
    coded_tile<Format> then;
    if (next.features > 0) then = {&next.weights->of, next.expert, next.first, next.features};
    multiply_rows_by_coded<dealt>(rows, row_count, piece.depth,
                           coded_tile<Format>{&tile.weights->of, tile.expert, tile.first, tile.features}, then, to,
                           stride);
  }
#endif
};

/// A matrix asks which format it has once for a row or a tile.
template <class Element, class... Formats>
struct restored<quantised_matrix<Element, quantised::any_of<Formats...>>> {
  using operand = quantised_matrix<Element, quantised::any_of<Formats...>>;
  using order = float;

  SWITCHYARD_TILE_TARGET static void read(operand const& weights, int expert, int row, std::int64_t first, int count,
                                          float* to) {
    bool is_read = false;
    (void)((read_as<Formats>(weights, expert, row, first, count, to, is_read), is_read) || ...);
  }
  SWITCHYARD_TILE_TARGET static bool multiply(float const* rows, int row_count, depth_slice const& piece,
                                              feature_tile<operand> const& tile, feature_tile<operand> const& next,
                                              float* to, std::int64_t stride) {
    return (multiply_as<Formats>(rows, row_count, piece.depth, tile, next, to, stride) || ...);
  }
  static constexpr bool multiplies_changes = false;

 private:
  template <class Format>
  SWITCHYARD_TILE_TARGET static void read_as(operand const& weights, int expert, int row, std::int64_t first, int count,
                                             float* to, bool& is_read) {
    Format const* const matrix = weights.of.template get_if<Format>();
    if (matrix == nullptr) return;
    is_read = true;
    if constexpr (is_coded<Format>) {
      read_coded<coded_in_order<Format>>(*matrix, expert, row, first, count, to);
    } else {
      restore_row(*matrix, expert, row, first, count, to);
    }
  }
  template <class Format>
  SWITCHYARD_TILE_TARGET static bool multiply_as(float const* rows, int row_count, std::int64_t depth,
                                                 feature_tile<operand> const& tile, feature_tile<operand> const& next,
                                                 float* to, std::int64_t stride) {
    if constexpr (is_coded<Format>) {
      Format const* const matrix = tile.weights->of.template get_if<Format>();
      if (matrix == nullptr) return false;
      coded_tile<Format> then;
      if (next.features > 0) {
        Format const* const of_next = next.weights->of.template get_if<Format>();
        if (of_next != nullptr) then = {of_next, next.expert, next.first, next.features};
      }
      return multiply_coded<coded_in_order<Format>>(
          rows, row_count, depth, coded_tile<Format>{matrix, tile.expert, tile.first, tile.features}, then, to, stride);
    } else {
      return false;
    }
  }
};

#undef SWITCHYARD_TILE_INLINE

#endif
