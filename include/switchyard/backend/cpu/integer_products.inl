// Part of tile.inl: rows of tokens of 8 bits, and their products with quantised weights. See integer_products.hpp.
//
// Vectors hold a number of each of some chunks, so that sums of a chunk's products need no other lanes. A row takes `integer_row_floats` for
// 16 chunks: eight words of four codes of each, the codes of one word after the other; their scales; scales times sums of codes; minus these sums.

inline constexpr int chunk_words = chunk_depth / 4, integer_row_floats = (chunk_words + 3) * piece_chunks;
static_assert(integer_row_floats <= least_row_floats && integer_row_floats <= integer_piece_depth);

typedef std::int16_t pair_sums __attribute__((vector_size(SWITCHYARD_TILE_BYTES)));

SWITCHYARD_TILE_TARGET inline words load_words(void const* from) {
  words result;
  __builtin_memcpy(&result, from, sizeof result);
  return result;
}
/// As many bytes as there are lanes, a word for each, and back. GCC 12 takes them one by one where vectors are wide.
typedef std::uint8_t some_bytes __attribute__((vector_size(SWITCHYARD_TILE_BYTES / 4), may_alias, aligned(1)));
SWITCHYARD_TILE_TARGET inline words widen_bytes(std::uint8_t const* from) {
#if defined(SWITCHYARD_TILE_EXPANDS) || (defined(SWITCHYARD_TILE_HALF) && !defined(SWITCHYARD_EMULATED_TILES))
  words result;
  asm("vpmovzxbd %1, %0" : "=v"(result) : "m"(*reinterpret_cast<some_bytes const*>(from)));
  return result;
#else
  some_bytes elements;
  __builtin_memcpy(&elements, from, sizeof elements);
  return __builtin_convertvector(elements, words);
#endif
}
SWITCHYARD_TILE_TARGET inline void narrow_to_bytes(words of, std::int8_t* to) {
#if defined(SWITCHYARD_TILE_EXPANDS)
  asm("vpmovdb %1, %0" : "=m"(*reinterpret_cast<some_bytes*>(to)) : "v"(of));
#else
  some_bytes const narrow = __builtin_convertvector(of, some_bytes);
  __builtin_memcpy(to, &narrow, sizeof narrow);
#endif
}

/// Where a row of some has 16 chunks: those of all rows stand together.
template <class Floats>
inline Floats* piece_of_row(Floats* rows, std::int64_t chunk, int r, int row_count) {
  return rows + (chunk / piece_chunks * row_count + r) * integer_row_floats;
}

/// Rounds a chunk of values and puts it where it stands. Products are kept from being contracted, so that all instruction sets
/// give the same bits.
template <code_order Order>
SWITCHYARD_TILE_TARGET inline void put_chunk(float const* values, std::int64_t chunk, int r, int row_count,
                                             float* rows) {
  constexpr float integer_bits = 12582912.0f;  // added to a small number it leaves the nearest integer in the low bits
  constexpr int vectors = chunk_depth / lanes;
  // Magnitudes are in the order of their bits, and what is no number comes after all others.
  integers most = {};
  SWITCHYARD_TILE_UNROLL
  for (int v = 0; v < vectors; ++v) {
    integers const size = reinterpret_cast<integers>(load_words(values + v * lanes) & 0x7fffffffu);
    integers const larger = reinterpret_cast<integers>(size > most);
    most = (size & larger) | (most & ~larger);
  }
  std::int32_t largest = 0;
  for (int i = 0; i < lanes; ++i) largest = most[i] > largest ? most[i] : largest;
  float magnitude;
  __builtin_memcpy(&magnitude, &largest, sizeof magnitude);
  float const scale = magnitude / 127.0f, inverse = largest == 0 ? 0.0f : 127.0f / magnitude;

  words sums = {};
  std::int8_t codes[chunk_depth];
  SWITCHYARD_TILE_UNROLL
  for (int v = 0; v < vectors; ++v) {
    floats product = load_floats(values + v * lanes) * inverse;
    SWITCHYARD_TILE_LOADED(product);
    words const bits =
        reinterpret_cast<words>(product + integer_bits) - __builtin_bit_cast(std::uint32_t, integer_bits);
    sums += bits;
    narrow_to_bytes(bits, codes + v * lanes);
  }
  std::uint32_t sum = 0;
  for (int i = 0; i < lanes; ++i) sum += sums[i];

  float* const to = piece_of_row(rows, chunk, r, row_count) + chunk % piece_chunks;
  for (int q = 0; q < chunk_words; ++q) {
    if constexpr (Order == code_order::pairs) {
      std::int8_t const* const from = codes + q % 4 * 8 + q / 4;
      std::int8_t const word[4] = {from[0], from[2], from[4], from[6]};
      __builtin_memcpy(to + q * piece_chunks, word, sizeof word);
    } else {
      __builtin_memcpy(to + q * piece_chunks, codes + 4 * q, 4);
    }
  }
  to[8 * piece_chunks] = scale;
  to[9 * piece_chunks] = static_cast<float>(static_cast<std::int32_t>(sum)) * scale;
  sum = 0u - sum;
  __builtin_memcpy(to + 10 * piece_chunks, &sum, sizeof sum);
}

/// Zeroes what stands behind the last chunk of a row.
inline void end_chunks(std::int64_t depth, int r, int row_count, float* rows) {
  std::int64_t const last = (depth - 1) / chunk_depth;
  float* const piece = piece_of_row(rows, last, r, row_count);
  for (int i = 0; i < integer_row_floats; i += piece_chunks) {
    for (int c = static_cast<int>(last % piece_chunks) + 1; c < piece_chunks; ++c) piece[i + c] = 0.0f;
  }
}

/// Values come in whole chunks, but at the end of a row.
template <code_order Order>
SWITCHYARD_TILE_TARGET void put_in_chunks(float const* values, int count, std::int64_t first, int r, int row_count,
                                          std::int64_t depth, float* to) {
  for (int i = 0; i < count; i += chunk_depth) {
    float const* from = values + i;
    float padded[chunk_depth] = {};
    if (count - i < chunk_depth) {
      __builtin_memcpy(padded, from, static_cast<std::size_t>(count - i) * sizeof(float));
      from = padded;
    }
    put_chunk<Order>(from, (first + i) / chunk_depth, r, row_count, to);
  }
  if (first + count == depth) end_chunks(depth, r, row_count, to);
}

template <class Element, code_order Order>
SWITCHYARD_TILE_TARGET void group_chunks(Element const* const* rows, int row_count, std::int64_t depth, float* to) {
  using loaded = std::conditional_t<std::is_same_v<Element, float>, float, summed_as_float<Element>>;
  for (int r = 0; r < row_count; ++r) {
    for (std::int64_t k = 0; k < depth; k += chunk_depth) {
      float values[chunk_depth] = {};
      if (k + chunk_depth <= depth) {
        for (int i = 0; i < chunk_depth; i += lanes) {
          floats const some = stored<loaded>::load(reinterpret_cast<loaded const*>(rows[r] + k + i), 0);
          __builtin_memcpy(values + i, &some, sizeof some);
        }
      } else {
        for (int i = 0; k + i < depth; ++i) values[i] = static_cast<float>(rows[r][k + i]);
      }
      put_chunk<Order>(values, k / chunk_depth, r, row_count, to);
    }
    end_chunks(depth, r, row_count, to);
  }
}

/// 16 chunks of a row of weights: words of unsigned codes as those of tokens, or, where instructions multiply no larger ones, the upper four
/// bits of bytes and then the lower ones.
template <int Planes>
struct integer_piece {
  alignas(64) std::uint32_t codes[Planes * chunk_words][piece_chunks];
  float scale[piece_chunks], least[piece_chunks];
};

/// Each 16 bytes of a vector come from where `at` says.
template <class At>
SWITCHYARD_TILE_TARGET inline words load_sixteens(At const& at) {
  words result;
#if defined(SWITCHYARD_TILE_EXPANDS) || (defined(SWITCHYARD_TILE_HALF) && !defined(SWITCHYARD_EMULATED_TILES))
  typedef std::uint8_t sixteen __attribute__((vector_size(16), may_alias, aligned(1)));
#if defined(SWITCHYARD_TILE_EXPANDS)
  asm("vmovdqu32 %1, %x0" : "=v"(result) : "m"(*reinterpret_cast<sixteen const*>(at(0))));
  asm("vinserti32x4 $1, %1, %0, %0" : "+v"(result) : "m"(*reinterpret_cast<sixteen const*>(at(1))));
  asm("vinserti32x4 $2, %1, %0, %0" : "+v"(result) : "m"(*reinterpret_cast<sixteen const*>(at(2))));
  asm("vinserti32x4 $3, %1, %0, %0" : "+v"(result) : "m"(*reinterpret_cast<sixteen const*>(at(3))));
#else
  asm("vmovdqu %1, %x0" : "=x"(result) : "m"(*reinterpret_cast<sixteen const*>(at(0))));
  asm("vinserti128 $1, %1, %0, %0" : "+x"(result) : "m"(*reinterpret_cast<sixteen const*>(at(1))));
#endif
#else
  std::uint8_t bytes[SWITCHYARD_TILE_BYTES];
  for (int j = 0; j < lanes / 4; ++j) __builtin_memcpy(bytes + 16 * j, at(j), 16);
  __builtin_memcpy(&result, bytes, sizeof result);
#endif
  return result;
}

/// Word i of each 16 bytes of vector j, and word j of vector i change places.
SWITCHYARD_TILE_TARGET inline void transpose_sixteens(words (&of)[4]) {
  auto const x = [&](int i) SWITCHYARD_TILE_TARGET { return reinterpret_cast<floats>(of[i]); };
  floats const a = shuffle_fours<0, 4, 1, 5>(x(0), x(1)), b = shuffle_fours<2, 6, 3, 7>(x(0), x(1));
  floats const c = shuffle_fours<0, 4, 1, 5>(x(2), x(3)), d = shuffle_fours<2, 6, 3, 7>(x(2), x(3));
  of[0] = reinterpret_cast<words>(shuffle_fours<0, 1, 4, 5>(a, c));
  of[1] = reinterpret_cast<words>(shuffle_fours<2, 3, 6, 7>(a, c));
  of[2] = reinterpret_cast<words>(shuffle_fours<0, 1, 4, 5>(b, d));
  of[3] = reinterpret_cast<words>(shuffle_fours<2, 3, 6, 7>(b, d));
}

/// What codes of E2M1 stand for, twice, plus 12.
SWITCHYARD_TILE_TARGET inline words look_up_e2m1(words codes) {
#if defined(SWITCHYARD_TILE_EXPANDS) || (defined(SWITCHYARD_TILE_HALF) && !defined(SWITCHYARD_EMULATED_TILES))
  words table, result;
#if defined(SWITCHYARD_TILE_EXPANDS)
  asm("vbroadcasti32x4 %1, %0" : "=v"(table) : "m"(shifted_e2m1));
#else
  asm("vbroadcasti128 %1, %0" : "=v"(table) : "m"(shifted_e2m1));
#endif
  asm("vpshufb %2, %1, %0" : "=v"(result) : "v"(table), "v"(codes));
  return result;
#else
  std::uint8_t bytes[SWITCHYARD_TILE_BYTES];
  __builtin_memcpy(bytes, &codes, sizeof codes);
  for (std::uint8_t& byte : bytes) byte = shifted_e2m1[byte];
  return load_words(bytes);
#endif
}

/// The codes of `count` chunks. What comes behind them is multiplied by zeros.
template <class Codes, bool Whole, int Planes>
SWITCHYARD_TILE_TARGET inline void prepare_codes(std::uint8_t const* codes, int count, integer_piece<Planes>& to) {
  constexpr std::uint32_t low_halves = 0x0f0f0f0fu;
  auto const put = [&](int word, int part, words const& of)
                       SWITCHYARD_TILE_TARGET { __builtin_memcpy(to.codes[word] + part, &of, sizeof of); };
  SWITCHYARD_TILE_UNROLL
  for (int part = 0; part < piece_chunks; part += lanes) {
    // Lanes 4 j to 4 j + 3 of a chunk's words stand in 16 bytes of four vectors.
    auto const chunks = [&](int i, int offset) SWITCHYARD_TILE_TARGET {
      return load_sixteens([&](int j) {
        int c = part + 4 * j + i;
        if (!Whole && c >= count) c = count - 1;
        if constexpr (Codes::order == code_order::planes) return codes + c / 8 * 144 + c % 8 / 2 * 32 + offset;
        return codes + c * Codes::code_step + offset;
      });
    };
    constexpr bool two_in_byte = Codes::order == code_order::halves || Codes::order == code_order::pairs;
    SWITCHYARD_TILE_UNROLL
    for (int half = 0; half < (two_in_byte ? 1 : 2); ++half) {
      words of[4];
      if constexpr (Codes::order == code_order::planes) {
        of[0] = chunks(0, 16 * half), of[2] = chunks(2, 16 * half);
        of[1] = of[0] >> 4, of[3] = of[2] >> 4;
      } else {
        SWITCHYARD_TILE_UNROLL
        for (int i = 0; i < 4; ++i) of[i] = chunks(i, 16 * half);
      }
      transpose_sixteens(of);
      SWITCHYARD_TILE_UNROLL
      for (int q = 0; q < 4; ++q) {
        if constexpr (two_in_byte) {
          words low = of[q] & low_halves, high = of[q] >> 4 & low_halves;
          if constexpr (Codes::scales == scale_form::powers) low = look_up_e2m1(low), high = look_up_e2m1(high);
          put(q, part, low);
          put(4 + q, part, high);
        } else if constexpr (Codes::order == code_order::planes) {
          put(4 * half + q, part, of[q] & low_halves);
        } else {
          words const all = of[q] ^ 0x80808080u;
          put(4 * half + q, part, Planes == 1 ? all : all >> 4 & low_halves);
          if constexpr (Planes == 2) put(chunk_words + 4 * half + q, part, all & low_halves);
        }
      }
    }
  }
}

/// Scales of 16 chunks as they stand: put together one by one, some time before vectors of them are loaded.
struct found_integer_scales {
  alignas(64) std::uint8_t bytes[2 * piece_chunks];
  half halves[piece_chunks];
  float of_row;
};
template <class Codes, bool Whole>
SWITCHYARD_TILE_TARGET inline void find_integer_scales(void const* scales, int count, found_integer_scales& found) {
  auto const* const from = static_cast<std::uint8_t const*>(scales);
  int const known = Whole ? piece_chunks : count;
  if constexpr (Codes::scales == scale_form::of_rows) {
    found.of_row = static_cast<float>(*static_cast<typename Codes::scale const*>(scales));
  } else if constexpr (Codes::scales == scale_form::six_bits) {
    for (int i = 0; i < (known + 7) / 8; ++i) {
      std::uint8_t const* const block = from + i * 144;
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
  } else {
    SWITCHYARD_TILE_UNROLL
    for (int c = 0; c < known; ++c) {
      if constexpr (Codes::scales == scale_form::powers) found.bytes[c] = from[c * Codes::scale_step];
      if constexpr (Codes::scales == scale_form::half_numbers) {
        __builtin_memcpy(found.halves + c, from + c * Codes::scale_step, sizeof(half));
      }
    }
  }
}
/// A number for each eight lanes. It is no lambda, for nvcc leaves out what instructions those may use.
SWITCHYARD_TILE_TARGET inline floats of_eights(float const* numbers) {
  floats result = floats{} + numbers[0];
#if defined(SWITCHYARD_TILE_EXPANDS)
  asm("vbroadcastss %1, %0%{%2%}" : "+v"(result) : "m"(numbers[1]), "Yk"(static_cast<std::uint16_t>(0xff00)));
#else
  for (int i = 8; i < lanes; ++i) result[i] = numbers[1];
#endif
  return result;
}
template <class Codes, int Planes>
SWITCHYARD_TILE_TARGET inline void ready_integer_scales(found_integer_scales const& found, integer_piece<Planes>& to) {
  auto const put = [](floats values, float* at)
                       SWITCHYARD_TILE_TARGET { __builtin_memcpy(at, &values, sizeof values); };
  for (int part = 0; part < piece_chunks; part += lanes) {
    if constexpr (Codes::scales == scale_form::half_numbers) {
      using in_order = summed_as_float<half>;
      put(stored<in_order>::load(reinterpret_cast<in_order const*>(found.halves + part), 0), to.scale + part);
    } else if constexpr (Codes::scales == scale_form::powers) {
      // As `quantised::e8m0` has them.
      words const codes = widen_bytes(found.bytes + part);
      words const special = reinterpret_cast<words>(codes == 0u) | reinterpret_cast<words>(codes == 255u);
      put(reinterpret_cast<floats>(codes << 23 | (special & 0x00400000u)) * 0.5f, to.scale + part);
    } else if constexpr (Codes::scales == scale_form::of_rows) {
      put(floats{} + found.of_row, to.scale + part);
    } else {
      using in_order = summed_as_float<half>;
      float known[lanes];
      put(stored<in_order>::load(reinterpret_cast<in_order const*>(found.halves), 0), known);
      put(__builtin_convertvector(reinterpret_cast<integers>(widen_bytes(found.bytes + part)), floats) *
              of_eights(known + part / 8),
          to.scale + part);
      put(__builtin_convertvector(reinterpret_cast<integers>(widen_bytes(found.bytes + 16 + part)), floats) *
              of_eights(known + 2 + part / 8),
          to.least + part);
    }
  }
}

/// What multiplies bytes. products[r][f] = the sums of the products of some chunks of rows and features.
#if defined(SWITCHYARD_TILE_EXPANDS) || (defined(SWITCHYARD_TILE_HALF) && !defined(SWITCHYARD_EMULATED_TILES))
/// One instruction for four products and a sum: of AVX-512, or AVX-VNNI's.
struct by_dots {
  template <class Codes>
  static constexpr int planes = 1;
  template <class Codes, int Rows, int Features>
  SWITCHYARD_TILE_TARGET static void multiply(integer_piece<1> const* weights, float const* rows, int part,
                                              integers (&products)[Rows][Features]) {
    SWITCHYARD_TILE_UNROLL
    for (int r = 0; r < Rows; ++r) {
      integers const minus_sums =
          reinterpret_cast<integers>(load_words(rows + r * integer_row_floats + 10 * piece_chunks));
      SWITCHYARD_TILE_UNROLL
      for (int f = 0; f < Features; ++f) products[r][f] = minus_sums * Codes::zero;
    }
    SWITCHYARD_TILE_UNROLL
    for (int q = 0; q < chunk_words; ++q) {
      words codes[Features];
      SWITCHYARD_TILE_UNROLL
      for (int f = 0; f < Features; ++f) {
        codes[f] = load_words(weights[f].codes[q] + part);
        SWITCHYARD_TILE_LOADED(codes[f]);
      }
      SWITCHYARD_TILE_UNROLL
      for (int r = 0; r < Rows; ++r) {
        words tokens = load_words(rows + r * integer_row_floats + q * piece_chunks);
        SWITCHYARD_TILE_LOADED(tokens);
        SWITCHYARD_TILE_UNROLL
        for (int f = 0; f < Features; ++f) {
#if defined(SWITCHYARD_TILE_EXPANDS)
          asm("vpdpbusd %2, %1, %0" : "+v"(products[r][f]) : "v"(codes[f]), "v"(tokens));
#else
          asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(products[r][f]) : "x"(codes[f]), "x"(tokens));
#endif
        }
      }
    }
  }
};
#endif

/// Pairs of products as 16 bits, which hold the sums of eight of them where codes have four bits.
struct by_pairs {
  template <class Codes>
  static constexpr int planes = Codes::order == code_order::bytes ? 2 : 1;

  SWITCHYARD_TILE_TARGET static pair_sums pairs(words codes, words tokens) {
#if defined(SWITCHYARD_TILE_HALF) && !defined(SWITCHYARD_TILE_EXPANDS) && !defined(SWITCHYARD_EMULATED_TILES)
    pair_sums result;
    asm("vpmaddubsw %2, %1, %0" : "=x"(result) : "x"(codes), "x"(tokens));
    return result;
#else
    pair_sums const even = reinterpret_cast<pair_sums>(codes & 0x00ff00ffu),
                    odd = reinterpret_cast<pair_sums>(codes >> 8 & 0x00ff00ffu);
    pair_sums const of_even = reinterpret_cast<pair_sums>(tokens << 8 & 0xff00ff00u) >> 8,
                    of_odd = reinterpret_cast<pair_sums>(tokens) >> 8;
    return even * of_even + odd * of_odd;
#endif
  }
  SWITCHYARD_TILE_TARGET static integers sums_of_two(pair_sums of) {
#if defined(SWITCHYARD_TILE_HALF) && !defined(SWITCHYARD_TILE_EXPANDS) && !defined(SWITCHYARD_EMULATED_TILES)
    integers result;
    words ones = {};  // nvcc crashes where a vector begins as a sum of constants
    ones += 0x00010001u;
    asm("vpmaddwd %2, %1, %0" : "=x"(result) : "x"(of), "x"(ones));
    return result;
#else
    return (reinterpret_cast<integers>(reinterpret_cast<words>(of) << 16) >> 16) +
           (reinterpret_cast<integers>(of) >> 16);
#endif
  }

  template <class Codes, int Rows, int Features>
  SWITCHYARD_TILE_TARGET static void multiply(integer_piece<planes<Codes>> const* weights, float const* rows, int part,
                                              integers (&products)[Rows][Features]) {
    // 2 x 15 x 127 fits eight times, 2 x 24 x 127 five times.
    constexpr int together = Codes::scales == scale_form::powers ? 4 : 8;
    for (int plane = 0; plane < planes<Codes>; ++plane) {
      SWITCHYARD_TILE_UNROLL
      for (int first = 0; first < chunk_words; first += together) {
        pair_sums sums[Rows][Features] = {};
        SWITCHYARD_TILE_UNROLL
        for (int q = first; q < first + together; ++q) {
          words codes[Features];
          SWITCHYARD_TILE_UNROLL
          for (int f = 0; f < Features; ++f) codes[f] = load_words(weights[f].codes[plane * chunk_words + q] + part);
          SWITCHYARD_TILE_UNROLL
          for (int r = 0; r < Rows; ++r) {
            words const tokens = load_words(rows + r * integer_row_floats + q * piece_chunks);
            SWITCHYARD_TILE_UNROLL
            for (int f = 0; f < Features; ++f) sums[r][f] += pairs(codes[f], tokens);
          }
        }
        SWITCHYARD_TILE_UNROLL
        for (int r = 0; r < Rows; ++r) {
          integers before = {};
          if (plane == 0 && first == 0) {
            before =
                reinterpret_cast<integers>(load_words(rows + r * integer_row_floats + 10 * piece_chunks)) * Codes::zero;
          }
          SWITCHYARD_TILE_UNROLL
          for (int f = 0; f < Features; ++f) {
            integers sum = sums_of_two(sums[r][f]);
            if (plane + 1 < planes<Codes>) sum *= 16;
            products[r][f] = plane == 0 && first == 0 ? before + sum : products[r][f] + sum;
          }
        }
      }
    }
  }
};

/// Every other `Block` lanes of x, and then of y: the first ones, or the second.
template <int Block, bool Second, int... Lane>
SWITCHYARD_TILE_TARGET inline floats every_other(floats x, floats y, std::integer_sequence<int, Lane...>) {
  constexpr int half = lanes / 2, from = Second ? Block : 0;
#if defined(__clang__)
  return __builtin_shufflevector(x, y,
                                 (Lane / half * lanes + Lane % half / Block * 2 * Block + from + Lane % Block)...);
#else
  return __builtin_shuffle(x, y,
                           words{static_cast<std::uint32_t>(Lane / half * lanes + Lane % half / Block * 2 * Block +
                                                            from + Lane % Block)...});
#endif
}
template <int Block>
SWITCHYARD_TILE_TARGET inline floats add_every_other(floats x, floats y) {
  constexpr auto all = std::make_integer_sequence<int, lanes>{};
  return every_other<Block, false>(x, y, all) + every_other<Block, true>(x, y, all);
}

/// Features whose sums make a vector.
inline constexpr int features_of_vector = lanes / 4;
/// The products of 16 chunks, those that are 8 apart added, then those that are 4 apart: four of each feature.
SWITCHYARD_TILE_TARGET inline floats fold_chunks(floats const (&of)[features_of_vector][piece_chunks / lanes]) {
#if SWITCHYARD_TILE_BYTES == 64
  return add_every_other<4>(add_every_other<8>(of[0][0], of[1][0]), add_every_other<8>(of[2][0], of[3][0]));
#elif SWITCHYARD_TILE_BYTES == 32
  return add_every_other<4>(of[0][0] + of[0][1], of[1][0] + of[1][1]);
#else
  return (of[0][0] + of[0][2]) + (of[0][1] + of[0][3]);
#endif
}

/// sums[r][f][4] (+)= products of some rows and features. Inlined, g++ 12 keeps sums in memory.
template <class Codes, class Multiplier, int Rows, int Features, class Piece>
SWITCHYARD_TILE_TARGET __attribute__((noinline)) void add_chunk_products(Piece const* weights, float const* rows,
                                                                         bool first, float* sums,
                                                                         std::int64_t sums_stride) {
  static_assert(Features % features_of_vector == 0);
  floats all[Rows][Features / features_of_vector][features_of_vector][piece_chunks / lanes];
  SWITCHYARD_TILE_UNROLL
  for (int part = 0; part < piece_chunks; part += lanes) {
    integers products[Rows][Features];
    Multiplier::template multiply<Codes>(weights, rows + part, part, products);
    SWITCHYARD_TILE_UNROLL
    for (int r = 0; r < Rows; ++r) {
      float const* const of_row = rows + r * integer_row_floats + part;
      floats const scale = load_floats(of_row + 8 * piece_chunks);
      SWITCHYARD_TILE_UNROLL
      for (int f = 0; f < Features; ++f) {
        floats product = __builtin_convertvector(products[r][f], floats) * load_floats(weights[f].scale + part);
        SWITCHYARD_TILE_LOADED(product);
        product *= scale;
        SWITCHYARD_TILE_LOADED(product);
        if constexpr (Codes::has_least) {
          floats subtracted = load_floats(of_row + 9 * piece_chunks) * load_floats(weights[f].least + part);
          SWITCHYARD_TILE_LOADED(subtracted);
          product -= subtracted;
        }
        all[r][f / features_of_vector][f % features_of_vector][part / lanes] = product;
      }
    }
  }
  SWITCHYARD_TILE_UNROLL
  for (int r = 0; r < Rows; ++r) {
    SWITCHYARD_TILE_UNROLL
    for (int v = 0; v < Features / features_of_vector; ++v) {
      float* const at = sums + r * sums_stride + v * lanes;
      floats sum = fold_chunks(all[r][v]);
      if (!first) sum += load_floats(at);
      __builtin_memcpy(at, &sum, sizeof sum);
    }
  }
}

/// The sums of four times four sums: those 2 apart are added first.
SWITCHYARD_TILE_TARGET inline quad sums_of_chunks(float const* sums) {
  quad four[4];
  __builtin_memcpy(four, sums, sizeof four);
  auto const two = [](quad x, quad y) SWITCHYARD_TILE_TARGET {
    return portable::shuffle_fours<0, 4, 1, 5>(x, y) + portable::shuffle_fours<2, 6, 3, 7>(x, y);
  };
  quad const first = two(four[0], four[1]), second = two(four[2], four[3]);
  return portable::shuffle_fours<0, 1, 4, 5>(first, second) + portable::shuffle_fours<2, 3, 6, 7>(first, second);
}

/// to[r][f] = row r . feature f, for rows in chunks. Weights of eight features far from each other, 512 deep, are made ready in the first-level
/// cache, where all rows meet them; what stands at the same place of the features behind them is fetched meanwhile.
template <class Operand, class Multiplier>
SWITCHYARD_TILE_TARGET void multiply_rows_by_integers(float const* rows, int row_count, depth_slice const& slice,
                                                      feature_tile<Operand> const& tile,
                                                      feature_tile<Operand> const& next, float* to,
                                                      std::int64_t stride) {
  using codes = operand_codes<Operand>;
  constexpr int streams = 8, most_together = 4, beside = lanes < 16 ? 2 : 4;
  int const chunks = static_cast<int>((slice.depth + chunk_depth - 1) / chunk_depth);
  int const each = (tile.features + streams - 1) / streams, each_next = (next.features + streams - 1) / streams;
  integer_piece<Multiplier::template planes<codes>> pieces[streams];
  found_integer_scales found[streams] = {};
  alignas(64) float sums[item_rows * streams * 4];
  alignas(64) std::uint8_t last_codes[codes::order == code_order::bytes ? integer_piece_depth : 1] = {};
  for (int i = 0; i < each; ++i) {
    for (int first = 0; first < chunks; first += piece_chunks) {
      int const left = chunks - first;
      bool const whole = left >= piece_chunks;
      code_line lines[streams];
      SWITCHYARD_TILE_UNROLL
      for (int s = 0; s < streams; ++s) {
        int const f = s * each + i < tile.features ? s * each + i : tile.features - 1;
        lines[s] = codes::line(tile.weights->of, tile.expert, tile.first + f, first);
        if (whole) {
          find_integer_scales<codes, true>(lines[s].scales, piece_chunks, found[s]);
        } else {
          found[s] = {};
          find_integer_scales<codes, false>(lines[s].scales, left, found[s]);
        }
      }
      for (int s = 0; s < streams; ++s) {
        if (whole) {
          prepare_codes<codes, true>(lines[s].codes, piece_chunks, pieces[s]);
        } else {
          std::uint8_t const* from = lines[s].codes;
          if constexpr (codes::order == code_order::bytes && codes::scales == scale_form::of_rows) {
            if (slice.depth % chunk_depth != 0) {  // no byte behind the last one may be read
              __builtin_memcpy(last_codes, from, static_cast<std::size_t>(slice.depth - first * chunk_depth));
              from = last_codes;
            }
          }
          prepare_codes<codes, false>(from, left, pieces[s]);
        }
        code_line later = lines[s];
        if (i + 1 < each) {
          if (s * each + i + 1 < tile.features) {
            later = codes::line(tile.weights->of, tile.expert, tile.first + s * each + i + 1, first);
          }
        } else if (s * each_next < next.features) {
          later = codes::line(next.weights->of, next.expert, next.first + s * each_next, first);
        }
        constexpr int bytes = piece_chunks * codes::code_step;
        SWITCHYARD_TILE_UNROLL
        for (int b = 0; b < bytes; b += 64) __builtin_prefetch(later.codes + b, 0, 2);
        if constexpr (codes::scale_step == 1) __builtin_prefetch(later.scales, 0, 2);
      }
      for (int s = 0; s < streams; ++s) ready_integer_scales<codes>(found[s], pieces[s]);

      for (int s = 0; s < streams; s += beside) {
        auto const add = [&]<int Rows>(std::integral_constant<int, Rows>, int r) SWITCHYARD_TILE_TARGET {
          add_chunk_products<codes, Multiplier, Rows, beside>(pieces + s, piece_of_row(rows, first, r, row_count),
                                                              first == 0, sums + (r * streams + s) * 4, streams * 4);
        };
        int r = 0;
        for (; r + most_together <= row_count; r += most_together) add(std::integral_constant<int, most_together>{}, r);
        if (row_count - r == 3) add(std::integral_constant<int, 3>{}, r);
        if (row_count - r == 2) add(std::integral_constant<int, 2>{}, r);
        if (row_count - r == 1) add(std::integral_constant<int, 1>{}, r);
      }
    }
    for (int r = 0; r < row_count; ++r) {
      for (int s = 0; s < streams; s += 4) {
        quad const products = sums_of_chunks(sums + (r * streams + s) * 4);
        for (int n = 0; n < 4 && (s + n) * each + i < tile.features; ++n) {
          to[r * stride + (s + n) * each + i] = products[n];
        }
      }
    }
  }
}
