// Part of tile.inl: panels of tokens of 8 bits, and their products with quantised weights. See integer_products.hpp.
//
// A chunk of 32 elements takes as much room in a panel as floats do. Of these are used: the codes plus 128 of four elements in a word, token
// after token, eight times; the tokens' scales; the scales times the sums of the codes. Every other chunk begins
// in the middle of its room, for a power of two apart they would take the same places of the cache.

inline constexpr int integer_features = 16, integer_tiles = 4, integer_panels = lanes < 16 ? 6 : 4;
inline constexpr int chunk_depth = 32, chunk_words = 8, chunk_shift = 16;

inline float* chunk_at(float* panel, std::int64_t chunk, int width) {
  return panel + (chunk * chunk_depth + chunk % 2 * chunk_shift) * width;
}
inline float const* chunk_at(float const* panel, std::int64_t chunk, int width) {
  return panel + (chunk * chunk_depth + chunk % 2 * chunk_shift) * width;
}

/// Rounds 32 values of each of some tokens. Products are kept from being contracted, so that all instruction sets give the same bits.
SWITCHYARD_TILE_TARGET inline void round_chunk(floats const (&values)[chunk_depth], float* to, int width) {
  floats most = {};
  for (floats const& value : values) {
    floats const size = reinterpret_cast<floats>(reinterpret_cast<words>(value) & 0x7fffffffu);
    words const larger = reinterpret_cast<words>(size > most) | reinterpret_cast<words>(size != size);
    most =
        reinterpret_cast<floats>((reinterpret_cast<words>(size) & larger) | (reinterpret_cast<words>(most) & ~larger));
  }
  constexpr float integer_bits = 12582912.0f;  // added to a small number it leaves the nearest integer in the low bits
  words const any = reinterpret_cast<words>(most != 0.0f);
  floats const scale = most / 127.0f, inverse = reinterpret_cast<floats>(reinterpret_cast<words>(127.0f / most) & any);
  integers sum = {};
  for (int q = 0; q < chunk_words; ++q) {
    words word = {};
    for (int b = 0; b < 4; ++b) {
      floats product = values[4 * q + b] * inverse;
      SWITCHYARD_TILE_LOADED(product);
      words const bits = reinterpret_cast<words>(product + integer_bits);
      sum += reinterpret_cast<integers>(bits - __builtin_bit_cast(std::uint32_t, integer_bits));
      word |= ((bits + 128u) & 255u) << (8 * b);
    }
    __builtin_memcpy(to + q * width, &word, sizeof word);
  }
  floats const all = __builtin_convertvector(sum, floats) * scale;
  __builtin_memcpy(to + 8 * width, &scale, sizeof scale);
  __builtin_memcpy(to + 9 * width, &all, sizeof all);
}

template <class Element>
SWITCHYARD_TILE_TARGET void pack_chunks(Element const* const* rows, int row_count, int width, std::int64_t depth,
                                        float* panel) {
  using loaded = std::conditional_t<std::is_same_v<Element, float>, float, summed_as_float<Element>>;
  for (std::int64_t k = 0; k < depth; k += chunk_depth) {
    for (int begin = 0; begin < width; begin += lanes) {
      floats values[chunk_depth] = {};
      if (k + chunk_depth <= depth) {
        for (int j = 0; j < chunk_depth; j += lanes) {
          floats square[lanes] = {};
          for (int i = 0; i < lanes && begin + i < row_count; ++i) {
            square[i] = stored<loaded>::load(reinterpret_cast<loaded const*>(rows[begin + i] + k + j), 0);
          }
          transpose(square);
          for (int i = 0; i < lanes; ++i) values[j + i] = square[i];
        }
      } else {
        for (int j = 0; k + j < depth; ++j) {
          for (int i = 0; i < lanes && begin + i < row_count; ++i) {
            values[j][i] = static_cast<float>(rows[begin + i][k + j]);
          }
        }
      }
      round_chunk(values, chunk_at(panel, k / chunk_depth, width) + begin, width);
    }
  }
}

/// Elements come in their order; with the last one of a chunk all are rounded.
SWITCHYARD_TILE_TARGET inline void put_in_chunk(float const* values, int width, std::int64_t k, std::int64_t depth,
                                                float* panel) {
  std::int64_t const chunk = k / chunk_depth;
  int const number = static_cast<int>(k % chunk_depth);
  float* const room = panel + chunk * chunk_depth * width;
  for (int i = 0; i < width; ++i) room[number * width + i] = values[i];
  if (number + 1 < chunk_depth && k + 1 < depth) return;
  for (int begin = 0; begin < width; begin += lanes) {
    floats all[chunk_depth] = {};
    for (int j = 0; j <= number; ++j) all[j] = load_floats(room + j * width + begin);
    // What is written lies in the columns that were read.
    round_chunk(all, chunk_at(panel, chunk, width) + begin, width);
  }
}

/// A piece of the weights of a tile. AVX2 multiplies bytes as words of 16 bits: of four, the first and the third, then the others.
struct integer_tile {
  static constexpr int chunks = panel_depth / chunk_depth;
#if defined(SWITCHYARD_TILE_HALF) && !defined(SWITCHYARD_TILE_EXPANDS)
  using code = std::int16_t;
  SWITCHYARD_TILE_TARGET static void put(std::int8_t const* codes, code* to) {
    typedef std::int8_t sixteen __attribute__((vector_size(16)));
    typedef std::int16_t wide __attribute__((vector_size(32)));
    for (int i = 0; i < chunk_depth; i += 16) {
      sixteen x;
      __builtin_memcpy(&x, codes + i, sizeof x);
#if defined(__clang__)
      x = __builtin_shufflevector(x, x, 0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
#else
      x = __builtin_shuffle(x, sixteen{0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15});
#endif
      wide const all = __builtin_convertvector(x, wide);
      __builtin_memcpy(to + i, &all, sizeof all);
    }
  }
#else
  using code = std::int8_t;
  static void put(std::int8_t const* codes, code* to) { __builtin_memcpy(to, codes, chunk_depth); }
#endif
  alignas(64) code codes[integer_features][panel_depth];
  std::int32_t start[chunks][integer_features];  // -128 times the sum of the codes
  float scale[chunks][integer_features], least[chunks][integer_features];
};
static_assert(integer_panels * integer_tiles * integer_features * 2 * lanes * sizeof(float) + sizeof(integer_tile) <=
              item_floats * sizeof(float));

template <class Operand>
SWITCHYARD_TILE_TARGET ready_weights prepare_codes(feature_tile<Operand> const& tile, std::int64_t first, int depth,
                                                   float* memory) {
  using format = operand_codes<Operand>;
  auto* const to = reinterpret_cast<integer_tile*>(memory);
  auto const& weights = tile.weights->of;
  for (int f = 0; f < integer_features; ++f) {
    int const row = tile.first + f;
    bool const any = f < tile.features;
    // The next piece of the row comes from memory meanwhile, at the end the beginning of the next tile's.
    bool const is_last = first + depth >= weights.columns;
    int const next_row = is_last ? row + integer_features : row;
    if (any && next_row < weights.rows) {
      std::int64_t const begin = is_last ? 0 : first + depth;
      std::int64_t const end = begin + panel_depth < weights.columns ? begin + panel_depth : weights.columns;
      auto const* const last = reinterpret_cast<char const*>(format::at(weights, tile.expert, next_row, end - 1));
      auto const* from = reinterpret_cast<char const*>(format::at(weights, tile.expert, next_row, begin));
      for (; from <= last; from += 64) __builtin_prefetch(from, 0, 2);
    }
    for (int k = 0; k < depth; k += chunk_depth) {
      int const c = k / chunk_depth, count = depth - k < chunk_depth ? depth - k : chunk_depth;
      coded_chunk from = {};
      if (any) format::chunk(weights, tile.expert, row, first + k, count, from);
      int sum = 0;
      for (int i = 0; i < chunk_depth; ++i) sum += from.codes[i];
      integer_tile::put(from.codes, to->codes[f] + k);
      to->start[c][f] = -128 * sum;
      to->scale[c][f] = from.scale;
      to->least[c][f] = from.least;
    }
  }
  return {to, 0};
}

/// sum += products of four codes of a feature and those of a vector of tokens.
#if defined(SWITCHYARD_TILE_EXPANDS)
struct token_bytes {
  words all;
  SWITCHYARD_TILE_TARGET explicit token_bytes(words codes) : all(codes) {}
};
SWITCHYARD_TILE_TARGET inline void add_products(token_bytes const& tokens, std::int8_t const* codes, integers& sum) {
  typedef std::int32_t four_codes __attribute__((may_alias, aligned(1)));
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(tokens.all), "m"(*reinterpret_cast<four_codes const*>(codes)));
}
#elif defined(SWITCHYARD_TILE_HALF)
struct token_bytes {
  words even, odd;
  SWITCHYARD_TILE_TARGET explicit token_bytes(words codes) : even(codes & 0x00ff00ffu), odd(codes >> 8 & 0x00ff00ffu) {}
};
SWITCHYARD_TILE_TARGET inline void add_products(token_bytes const& tokens, std::int16_t const* codes, integers& sum) {
  std::int32_t pairs[2];
  __builtin_memcpy(pairs, codes, sizeof pairs);
  integers const even = integers{} + pairs[0], odd = integers{} + pairs[1];
  integers of_even, of_odd;
  asm("vpmaddwd %2, %1, %0" : "=x"(of_even) : "x"(tokens.even), "x"(even));
  asm("vpmaddwd %2, %1, %0" : "=x"(of_odd) : "x"(tokens.odd), "x"(odd));
  sum += of_even + of_odd;
}
#else
struct token_bytes {
  integers of[4];
  explicit token_bytes(words codes) {
    for (int b = 0; b < 4; ++b) of[b] = reinterpret_cast<integers>(codes >> (8 * b) & 255u);
  }
};
inline void add_products(token_bytes const& tokens, std::int8_t const* codes, integers& sum) {
  for (int b = 0; b < 4; ++b) sum += tokens.of[b] * static_cast<std::int32_t>(codes[b]);
}
#endif

/// sums[f][i] (+)= products of the features of a tile and `Vectors` vectors of tokens, chunk after chunk.
template <int Vectors, bool HasLeast>
SWITCHYARD_TILE_TARGET void multiply_chunks(ready_weights const& ready, float const* panel, int depth, bool first,
                                            float* sums, fetched_rows const&) {
  constexpr int width = Vectors * lanes, together = lanes < 16 ? 2 : 4;
  auto const& weights = *static_cast<integer_tile const*>(ready.first);
  auto const bytes_of_four = [](integer_tile const& of, int f, int k)
                                 SWITCHYARD_TILE_TARGET { return of.codes[f] + k; };
  for (int begin = 0; begin < integer_features; begin += together) {
    floats sum[together][Vectors] = {};
    if (!first) __builtin_memcpy(sum, sums + begin * width, sizeof sum);
    for (int k = 0; k < depth; k += chunk_depth) {
      int const c = k / chunk_depth;
      float const* const chunk = chunk_at(panel, c, width);
      integers products[together][Vectors];
      SWITCHYARD_TILE_UNROLL
      for (int f = 0; f < together; ++f) {
        SWITCHYARD_TILE_UNROLL
        for (int v = 0; v < Vectors; ++v) products[f][v] = integers{} + weights.start[c][begin + f];
      }
      SWITCHYARD_TILE_UNROLL
      for (int q = 0; q < chunk_words; ++q) {
        SWITCHYARD_TILE_UNROLL
        for (int v = 0; v < Vectors; ++v) {
          token_bytes const tokens(reinterpret_cast<words>(load_floats(chunk + q * width + v * lanes)));
          SWITCHYARD_TILE_UNROLL
          for (int f = 0; f < together; ++f) {
            add_products(tokens, bytes_of_four(weights, begin + f, k + 4 * q), products[f][v]);
          }
        }
      }
      SWITCHYARD_TILE_UNROLL
      for (int v = 0; v < Vectors; ++v) {
        floats const scale = load_floats(chunk + chunk_words * width + v * lanes);
        SWITCHYARD_TILE_UNROLL
        for (int f = 0; f < together; ++f) {
          floats product = __builtin_convertvector(products[f][v], floats) * weights.scale[c][begin + f];
          SWITCHYARD_TILE_LOADED(product);
          product *= scale;
          SWITCHYARD_TILE_LOADED(product);
          if constexpr (HasLeast) {
            floats subtracted =
                load_floats(chunk + (chunk_words + 1) * width + v * lanes) * weights.least[c][begin + f];
            SWITCHYARD_TILE_LOADED(subtracted);
            product -= subtracted;
          }
          sum[f][v] += product;
        }
      }
    }
    __builtin_memcpy(sums + begin * width, sum, sizeof sum);
  }
}
