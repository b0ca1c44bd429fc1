// Part of quantised.inl, where instructions look codes up: how the weights of each format are widened by vectors.

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
