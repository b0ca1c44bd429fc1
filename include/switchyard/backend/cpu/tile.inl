// Included by tile.hpp once per instruction set, each time inside another namespace and with other values of
//   SWITCHYARD_TILE_TARGET     the attribute that lets a function use the instruction set
//   SWITCHYARD_TILE_BYTES      bytes of one vector register
//   SWITCHYARD_TILE_REGISTERS  how many there are
//   SWITCHYARD_TILE_ROWS       rows that are multiplied together without panels
//   SWITCHYARD_PANEL_FEATURES  features that are multiplied together with a panel
//   SWITCHYARD_TILE_HALF       defined where an instruction makes floats of half elements, in any mode of the processor
//   SWITCHYARD_TILE_EXPANDS    defined where one puts the first elements of a vector where a mask has bits
// Vectors are the compilers' vector extension, so the source is the same for all of them.

inline constexpr int lanes = SWITCHYARD_TILE_BYTES / 4;
typedef float floats __attribute__((vector_size(SWITCHYARD_TILE_BYTES)));
typedef std::uint32_t words __attribute__((vector_size(SWITCHYARD_TILE_BYTES)));
typedef std::int32_t integers __attribute__((vector_size(SWITCHYARD_TILE_BYTES)));

typedef float quad __attribute__((vector_size(16)));

/// Each four lanes of the result come from the same four lanes of x (0 to 3) and y (4 to 7).
template <int... Pattern, int... Lane>
SWITCHYARD_TILE_TARGET inline floats shuffle_fours(floats x, floats y, std::integer_sequence<int, Lane...>) {
  constexpr int pattern[4] = {Pattern...};
#if defined(__clang__)
  return __builtin_shufflevector(
      x, y,
      (pattern[Lane % 4] < 4 ? Lane / 4 * 4 + pattern[Lane % 4] : lanes + Lane / 4 * 4 + pattern[Lane % 4] - 4)...);
#else
  return __builtin_shuffle(
      x, y,
      words{static_cast<std::uint32_t>(pattern[Lane % 4] < 4 ? Lane / 4 * 4 + pattern[Lane % 4]
                                                             : lanes + Lane / 4 * 4 + pattern[Lane % 4] - 4)...});
#endif
}
template <int... Pattern>
SWITCHYARD_TILE_TARGET inline floats shuffle_fours(floats x, floats y) {
  return shuffle_fours<Pattern...>(x, y, std::make_integer_sequence<int, lanes>{});
}

/// The lanes of four vectors together.
SWITCHYARD_TILE_TARGET inline quad sums_of(floats a, floats b, floats c, floats d) {
  floats const first = shuffle_fours<0, 4, 1, 5>(a, b) + shuffle_fours<2, 6, 3, 7>(a, b);
  floats const second = shuffle_fours<0, 4, 1, 5>(c, d) + shuffle_fours<2, 6, 3, 7>(c, d);
  floats const all = shuffle_fours<0, 1, 4, 5>(first, second) + shuffle_fours<2, 3, 6, 7>(first, second);
  quad piece[lanes / 4];
  __builtin_memcpy(piece, &all, sizeof all);
  for (int i = 1; i < lanes / 4; ++i) piece[0] += piece[i];
  return piece[0];
}

/// products[i] = the sum of the lanes of sums[i], with room for three more.
template <int Count>
SWITCHYARD_TILE_TARGET inline void put_sums(floats const (&sums)[Count], float* products) {
  SWITCHYARD_TILE_UNROLL
  for (int i = 0; i < Count; i += 4) {
    floats four[4];
    SWITCHYARD_TILE_UNROLL
    for (int n = 0; n < 4; ++n) four[n] = sums[i + n < Count ? i + n : 0];  // past the last: any
    quad const together = sums_of(four[0], four[1], four[2], four[3]);
    __builtin_memcpy(products + i, &together, sizeof together);
  }
}

/// Two-byte elements, a word for each.
SWITCHYARD_TILE_TARGET inline words widen_words(void const* from) {
  typedef std::uint16_t shorts __attribute__((vector_size(SWITCHYARD_TILE_BYTES / 2)));
  shorts elements;
  __builtin_memcpy(&elements, from, sizeof elements);
  return __builtin_convertvector(elements, words);
}

#if !defined(SWITCHYARD_TILE_HALF)
/// Half elements, a word for each, as floats: what half::operator float does.
SWITCHYARD_TILE_TARGET inline floats floats_of_halves(words bits) {
  words const magnitude = bits & 0x7fffu;
  floats const small = __builtin_convertvector(reinterpret_cast<integers>(magnitude), floats) * 0x1p-24f;
  words const special = reinterpret_cast<words>(magnitude >= 0x7c00u) & (112u << 23);
  words const usual = (magnitude << 13) + (112u << 23) + special;
  words const is_small = reinterpret_cast<words>(magnitude < 0x0400u);
  words const absolute = (reinterpret_cast<words>(small) & is_small) | (usual & ~is_small);
  return reinterpret_cast<floats>(absolute | ((bits & 0x8000u) << 16));
}
#endif

/// A vector of stored elements as floats, in `parts` of `lanes`. Those of two-byte elements are the even and the odd ones,
/// unless they come `in_order`: a product over depth may take its terms in any order as long as both operands agree.
template <class Element>
struct stored;

template <>
struct stored<float> {
  static constexpr int parts = 1;
  static constexpr bool in_order = true;
  SWITCHYARD_TILE_TARGET static floats load(float const* from, int) {
    floats result;
    __builtin_memcpy(&result, from, sizeof(floats));
    return result;
  }
};

template <>
struct stored<bfloat16> {
  static constexpr int parts = 2;
  static constexpr bool in_order = false;
  SWITCHYARD_TILE_TARGET static floats load(bfloat16 const* from, int part) {
    words pair;
    __builtin_memcpy(&pair, from, sizeof(words));
    return reinterpret_cast<floats>(part == 0 ? pair << 16 : pair & 0xffff0000u);
  }
};

template <>
struct stored<half> {
  static constexpr int parts = 2;
#if defined(SWITCHYARD_TILE_HALF)
  static constexpr bool in_order = true;
  SWITCHYARD_TILE_TARGET static floats load(half const* from, int part) {
    typedef std::uint16_t halves __attribute__((vector_size(SWITCHYARD_TILE_BYTES / 2), may_alias, aligned(2)));
    floats result;
    asm("vcvtph2ps %1, %0" : "=v"(result) : "m"(*reinterpret_cast<halves const*>(from + part * lanes)));
    return result;
  }
#else
  static constexpr bool in_order = false;
  SWITCHYARD_TILE_TARGET static floats load(half const* from, int part) {
    words pair;
    __builtin_memcpy(&pair, from, sizeof(words));
    return floats_of_halves(part == 0 ? pair & 0xffffu : pair >> 16);
  }
#endif
};

/// Elements in their order, a vector of floats at a time: as `stored<float>` has them.
template <>
struct stored<summed_as_float<bfloat16>> {
  static constexpr int parts = 1;
  static constexpr bool in_order = true;
  SWITCHYARD_TILE_TARGET static floats load(summed_as_float<bfloat16> const* from, int) {
    return reinterpret_cast<floats>(widen_words(from) << 16);
  }
};

template <>
struct stored<summed_as_float<half>> {
  static constexpr int parts = 1;
  static constexpr bool in_order = true;
  SWITCHYARD_TILE_TARGET static floats load(summed_as_float<half> const* from, int) {
#if defined(SWITCHYARD_TILE_HALF)
    return stored<half>::load(&from->value, 0);
#else
    return floats_of_halves(widen_words(from));
#endif
  }
};

template <>
struct stored<summed_as_float<float>> {
  static constexpr int parts = 1;
  static constexpr bool in_order = true;
  SWITCHYARD_TILE_TARGET static floats load(summed_as_float<float> const* from, int) {
    floats result;
    __builtin_memcpy(&result, from, sizeof result);
    return result;
  }
};

template <class Element>
struct stored<widened<Element>> {
  static constexpr int parts = stored<Element>::parts;
  static constexpr bool in_order = stored<Element>::in_order;
  SWITCHYARD_TILE_TARGET static floats load(widened<Element> const* from, int part) {
    floats result;
    __builtin_memcpy(&result, from + part * lanes, sizeof(floats));
    return result;
  }
};

/// The elements of a row or of a panel stand in the order in which loads of weights come: most two-byte elements as even and
/// odd ones. `depth` is that of the whole row; what does not fill a vector at its end stays where it is.
template <class Element>
inline std::int64_t depth_position(std::int64_t k, std::int64_t depth) {
  constexpr int parts = stored<Element>::parts, step = lanes * parts;
  if (stored<Element>::in_order || k >= depth / step * step) return k;
  return k / step * step + k % parts * lanes + k % step / parts;
}

/// The element that stands at a `depth_position`.
template <class Element>
inline std::int64_t element_at(std::int64_t position, std::int64_t depth) {
  constexpr int parts = stored<Element>::parts, step = lanes * parts;
  if (stored<Element>::in_order || position >= depth / step * step) return position;
  return position / step * step + position % lanes * parts + position % step / lanes;
}

/// to[depth_position(k)] = element k, as a float.
template <class Element>
SWITCHYARD_TILE_TARGET void widen_row(Element const* from, std::int64_t depth, float* to) {
  using source = stored<Element>;
  constexpr int step = lanes * source::parts;
  std::int64_t const by_steps = depth / step * step;
  for (std::int64_t k = 0; k < by_steps; k += step) {
    for (int p = 0; p < source::parts; ++p) {
      floats const part = source::load(from + k, p);
      __builtin_memcpy(to + k + p * lanes, &part, sizeof(floats));
    }
  }
  for (std::int64_t k = by_steps; k < depth; ++k) to[k] = static_cast<float>(from[k]);
}

/// Rows that are multiplied together at most, and features beside so many: their sums, a vector of weights for each feature
/// and one of a row fit the registers.
inline constexpr int most_rows = SWITCHYARD_TILE_ROWS;
constexpr int features_beside(int rows) {
#if defined(SWITCHYARD_TILE_BY_HAND)
  if (rows == 4) return 3;  // and nothing else fits: see `add_step`
#endif
  int const fit = (SWITCHYARD_TILE_REGISTERS - 2) / (rows + 1);
  return fit < 4 ? fit : 4;
}

/// Rows without a panel stand in groups of about the same number, each group `row_floats(depth)` floats for each of its rows.
/// In a group, vectors of the rows take turns.
struct row_group {
  int first, rows;
};
inline row_group group_of_rows(int row_count, int number) {
  int const groups = (row_count + most_rows - 1) / most_rows;
  int const first = row_count * number / groups;
  return {first, row_count * (number + 1) / groups - first};
}
inline int groups_of_rows(int row_count) { return (row_count + most_rows - 1) / most_rows; }

/// Where element k of row r stands in a group.
template <class Element>
inline std::int64_t group_position(std::int64_t k, int r, int rows, std::int64_t depth) {
  constexpr int step = lanes * stored<Element>::parts;
  if (k >= depth / step * step) return k * rows + r;
  std::int64_t const place = depth_position<Element>(k, depth);
  return (place / lanes * rows + r) * lanes + place % lanes;
}

/// Puts rows side by side for `multiply_rows_by_features`.
template <class Element>
SWITCHYARD_TILE_TARGET void group_rows(Element const* const* rows, int row_count, std::int64_t depth, float* to) {
  using source = stored<Element>;
  constexpr int step = lanes * source::parts;
  std::int64_t const by_steps = depth / step * step;
  for (int g = 0; g < groups_of_rows(row_count); ++g) {
    row_group const group = group_of_rows(row_count, g);
    float* const begin = to + group.first * row_floats(depth);
    for (int r = 0; r < group.rows; ++r) {
      Element const* const from = rows[group.first + r];
      for (std::int64_t k = 0; k < by_steps; k += step) {
        for (int p = 0; p < source::parts; ++p) {
          floats const part = source::load(from + k, p);
          __builtin_memcpy(begin + (k + p * lanes) * group.rows + r * lanes, &part, sizeof(floats));
        }
      }
      for (std::int64_t k = by_steps; k < depth; ++k) begin[k * group.rows + r] = static_cast<float>(from[k]);
    }
  }
}

/// Puts `count` elements of row r, from element `first` on, where `group_rows` would.
template <class Element>
SWITCHYARD_TILE_TARGET void put_in_group(float const* values, int count, std::int64_t first, int r, int row_count,
                                         std::int64_t depth, float* to) {
  constexpr int parts = stored<Element>::parts, step = lanes * parts;
  row_group group = group_of_rows(row_count, 0);
  for (int g = 1; r >= group.first + group.rows; ++g) group = group_of_rows(row_count, g);
  float* const begin = to + group.first * row_floats(depth);
  r -= group.first;
  int i = 0;
  for (; first % step == 0 && i + step <= count; i += step) {
    for (int p = 0; p < parts; ++p) {
      float* const vector = begin + (first + i + p * lanes) * group.rows + r * lanes;
      for (int lane = 0; lane < lanes; ++lane) {
        vector[lane] = values[i + (stored<Element>::in_order ? p * lanes + lane : lane * parts + p)];
      }
    }
  }
  for (; i < count; ++i) begin[group_position<Element>(first + i, r, group.rows, depth)] = values[i];
}

/// Integers in the order of floats. What is no number comes after all others.
SWITCHYARD_TILE_TARGET inline integers order_keys(floats values) {
  integers const bits = reinterpret_cast<integers>(values), is_nan = reinterpret_cast<integers>(values != values);
  return (is_nan & 0x7fffffff) | (~is_nan & (bits ^ ((bits >> 31) & 0x7fffffff)));
}
SWITCHYARD_TILE_TARGET inline floats load_floats(float const* from) {
  floats result;
  __builtin_memcpy(&result, from, sizeof result);
  return result;
}
/// Stores values whose keys are at least `least`, and zeros in the place of others.
SWITCHYARD_TILE_TARGET inline void store_largest(floats values, integers keys, integers least, float* to) {
  integers const kept = reinterpret_cast<integers>(values) & reinterpret_cast<integers>(keys >= least);
  __builtin_memcpy(to, &kept, sizeof kept);
}

/// What stands for the values of a vector at `depth_position` k, by which they are ranked: the values, or their products with factors.
template <class Element, bool Weighted>
SWITCHYARD_TILE_TARGET inline integers ranks_of(floats values, float const* factors, std::int64_t k,
                                                std::int64_t depth) {
  if constexpr (Weighted) {
    floats of_lanes;
    for (int i = 0; i < lanes; ++i) of_lanes[i] = factors[element_at<Element>(k + i, depth)];
    values *= of_lanes;
  }
  return order_keys(values);
}

/// Zeroes what is less than the `kept`-th largest value of a row, whose vectors are `stride` vectors apart and stand at `vectors`; what
/// fills none stands at `rest`. The threshold is found bit by bit: how many values are as large?
template <class Element, bool Weighted>
SWITCHYARD_TILE_TARGET inline void keep_largest_of_row(float* vectors, float* rest, int stride, std::int64_t depth,
                                                       int kept, float const* factors) {
  constexpr int step = lanes * stored<Element>::parts;
  std::int64_t const by_steps = depth / step * step;
  auto const rank_of_rest = [&](std::int64_t k) {
    float const value = rest[k * stride];
    return order_key(Weighted ? value * factors[k] : value);
  };
  std::uint32_t least = 1u << 31;
  for (int bit = 31; bit >= 0; --bit) {
    auto const tried = static_cast<std::int32_t>(least + (1u << bit));
    integers counts = {};
    for (std::int64_t k = 0; k < by_steps; k += lanes) {
      integers const ranks = ranks_of<Element, Weighted>(load_floats(vectors + k * stride), factors, k, depth);
      counts -= reinterpret_cast<integers>(ranks >= tried);
    }
    int count = 0;
    for (int i = 0; i < lanes; ++i) count += counts[i];
    for (std::int64_t k = by_steps; k < depth; ++k) count += rank_of_rest(k) >= tried ? 1 : 0;
    if (count >= kept) least += 1u << bit;
  }
  auto const threshold = static_cast<std::int32_t>(least);
  for (std::int64_t k = 0; k < by_steps; k += lanes) {
    floats const values = load_floats(vectors + k * stride);
    store_largest(values, ranks_of<Element, Weighted>(values, factors, k, depth), integers{} + threshold,
                  vectors + k * stride);
  }
  for (std::int64_t k = by_steps; k < depth; ++k) {
    if (rank_of_rest(k) < threshold) rest[k * stride] = 0.0f;
  }
}

/// The same for each row of some groups. `factors` of the values, by whose products they are ranked; null: by the values.
template <class Element>
SWITCHYARD_TILE_TARGET void keep_largest_in_group(float* to, int row_count, std::int64_t depth, int kept,
                                                  float const* factors) {
  for (int g = 0; g < groups_of_rows(row_count); ++g) {
    row_group const group = group_of_rows(row_count, g);
    float* const begin = to + group.first * row_floats(depth);
    for (int r = 0; r < group.rows; ++r) {
      if (factors == nullptr) {
        keep_largest_of_row<Element, false>(begin + r * lanes, begin + r, group.rows, depth, kept, factors);
      } else {
        keep_largest_of_row<Element, true>(begin + r * lanes, begin + r, group.rows, depth, kept, factors);
      }
    }
  }
}

template <class Element>
SWITCHYARD_TILE_TARGET inline integers ranks_in_panel(float const* rows, int width, std::int64_t depth,
                                                      float const* factors, std::int64_t position) {
  floats values = load_floats(rows + position * width);
  if (factors != nullptr) values *= factors[element_at<Element>(position, depth)];
  return order_keys(values);
}

/// The same of each row of a panel, a vector of rows at a time.
template <class Element>
SWITCHYARD_TILE_TARGET void keep_largest_in_panel(float* panel, int width, std::int64_t depth, int kept,
                                                  float const* factors) {
  for (int first = 0; first < width; first += lanes) {
    float* const rows = panel + first;
    words least = {};  // nvcc crashes where a vector begins as a sum of constants
    least += 1u << 31;
    for (int bit = 31; bit >= 0; --bit) {
      words const tried = least + (1u << bit);
      integers counts = {};
      for (std::int64_t k = 0; k < depth; ++k) {
        integers const ranks = ranks_in_panel<Element>(rows, width, depth, factors, k);
        counts -= reinterpret_cast<integers>(ranks >= reinterpret_cast<integers>(tried));
      }
      words const enough = reinterpret_cast<words>(counts >= kept);
      least = (enough & tried) | (~enough & least);
    }
    for (std::int64_t k = 0; k < depth; ++k) {
      store_largest(load_floats(rows + k * width), ranks_in_panel<Element>(rows, width, depth, factors, k),
                    reinterpret_cast<integers>(least), rows + k * width);
    }
  }
}

#if defined(SWITCHYARD_TILE_BY_HAND)
/// sum[r][s] += row r . weights s, for the next 16 elements of four rows of a group and of three features. The twelve sums leave four
/// registers, of which compilers keep one for a constant, and sums in memory then.
SWITCHYARD_TILE_TARGET inline void add_step(floats (&sum)[4][3], float const* rows, bfloat16 const* first,
                                            bfloat16 const* second, bfloat16 const* third) {
  alignas(32) static constexpr std::uint32_t upper_half[lanes] = {0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u,
                                                                  0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u};
  // Bytes 0 and 1 of each word become bytes 2 and 3. A shift would take one of the two units that multiply.
  alignas(32) static constexpr std::uint32_t moved_up[lanes] = {0x01008080u, 0x05048080u, 0x09088080u, 0x0d0c8080u,
                                                                0x01008080u, 0x05048080u, 0x09088080u, 0x0d0c8080u};
  floats a = sum[0][0], b = sum[0][1], c = sum[0][2], d = sum[1][0], e = sum[1][1], f = sum[1][2];
  floats g = sum[2][0], h = sum[2][1], i = sum[2][2], j = sum[3][0], k = sum[3][1], l = sum[3][2];
#define SWITCHYARD_WEIGHTS(widen)                                                                        \
  "vmovdqu (%[first]), %%ymm12\n\tvmovdqu (%[second]), %%ymm13\n\tvmovdqu (%[third]), %%ymm14\n\t" widen \
  ", %%ymm12, %%ymm12\n\t" widen ", %%ymm13, %%ymm13\n\t" widen ", %%ymm14, %%ymm14\n\t"
#define SWITCHYARD_ROW(at, first, second, third)                               \
  "vmovups " at "(%[rows]), %%ymm15\n\tvfmadd231ps %%ymm12, %%ymm15, %[" first \
  "]\n\tvfmadd231ps %%ymm13, %%ymm15, %[" second "]\n\tvfmadd231ps %%ymm14, %%ymm15, %[" third "]\n\t"
  asm(SWITCHYARD_WEIGHTS("vpshufb %[up]")                                        //
      SWITCHYARD_ROW("0", "a", "b", "c") SWITCHYARD_ROW("32", "d", "e", "f")     //
      SWITCHYARD_ROW("64", "g", "h", "i") SWITCHYARD_ROW("96", "j", "k", "l")    //
      SWITCHYARD_WEIGHTS("vpand %[upper]")                                       //
      SWITCHYARD_ROW("128", "a", "b", "c") SWITCHYARD_ROW("160", "d", "e", "f")  //
      SWITCHYARD_ROW("192", "g", "h", "i") SWITCHYARD_ROW("224", "j", "k", "l")  //
      : [a] "+x"(a), [b] "+x"(b), [c] "+x"(c), [d] "+x"(d), [e] "+x"(e), [f] "+x"(f), [g] "+x"(g), [h] "+x"(h),
        [i] "+x"(i), [j] "+x"(j), [k] "+x"(k), [l] "+x"(l)
      : [rows] "r"(rows), [first] "r"(first), [second] "r"(second), [third] "r"(third), [upper] "m"(upper_half),
        [up] "m"(moved_up)
      : "xmm12", "xmm13", "xmm14", "xmm15", "memory");
#undef SWITCHYARD_WEIGHTS
#undef SWITCHYARD_ROW
  floats const all[4][3] = {{a, b, c}, {d, e, f}, {g, h, i}, {j, k, l}};
  SWITCHYARD_TILE_UNROLL
  for (int r = 0; r < 4; ++r) {
    SWITCHYARD_TILE_UNROLL
    for (int s = 0; s < 3; ++s) sum[r][s] = all[r][s];
  }
}
#endif

/// Where weights are fetched from while others are multiplied: in each of some streams at `from`, `step` elements for every
/// step of the product; from depth `turn` on, at `then`.
template <class Element, int Streams>
struct fetched_streams {
  Element const *from[Streams], *then[Streams];
  std::int64_t turn, step;
};

/// products[r * Streams + s] = row r . the feature of stream s, for a group of `Rows` rows: `depth` by vectors, then one by one to `end`.
template <class Element, int Rows, int Streams>
SWITCHYARD_TILE_TARGET void multiply_group(float const* rows, Element const* const (&weights)[Streams],
                                           fetched_streams<Element, Streams> const& fetched, std::int64_t depth,
                                           std::int64_t end, float* products) {
  using source = stored<Element>;
  constexpr int step = lanes * source::parts;
  floats sum[Rows][Streams] = {};
  std::int64_t k = 0, ahead = 0;
  std::int64_t const ahead_step = fetched.step;
  for (int part = 0; part < 2; ++part) {
    std::int64_t const until = part == 0 ? fetched.turn : depth;
    Element const* next[Streams];
    SWITCHYARD_TILE_UNROLL
    for (int s = 0; s < Streams; ++s) next[s] = part == 0 ? fetched.from[s] : fetched.then[s];
    for (; k < until; k += step, ahead += ahead_step, rows += step * Rows) {
      SWITCHYARD_TILE_UNROLL
      for (int s = 0; s < Streams; ++s) __builtin_prefetch(next[s] + ahead);
#if defined(SWITCHYARD_TILE_BY_HAND)
      if constexpr (std::is_same_v<Element, bfloat16> && Rows == 4 && Streams == 3) {
        add_step(sum, rows, weights[0] + k, weights[1] + k, weights[2] + k);
        continue;
      }
#endif
      SWITCHYARD_TILE_UNROLL
      for (int p = 0; p < source::parts; ++p) {
        floats right[Streams];
        SWITCHYARD_TILE_UNROLL
        for (int s = 0; s < Streams; ++s) right[s] = source::load(weights[s] + k, p);
        SWITCHYARD_TILE_UNROLL
        for (int r = 0; r < Rows; ++r) {
          floats left;
          __builtin_memcpy(&left, rows + (p * Rows + r) * lanes, sizeof(floats));
          SWITCHYARD_TILE_LOADED(left);
          SWITCHYARD_TILE_UNROLL
          for (int s = 0; s < Streams; ++s) sum[r][s] += left * right[s];
        }
      }
    }
  }
  constexpr int count = Rows * Streams;
  SWITCHYARD_TILE_UNROLL
  for (int i = 0; i < count; i += 4) {
    floats four[4];
    SWITCHYARD_TILE_UNROLL
    for (int n = 0; n < 4; ++n) {
      int const at = i + n < count ? i + n : 0;  // past the last: any
      four[n] = sum[at / Streams][at % Streams];
    }
    quad const together = sums_of(four[0], four[1], four[2], four[3]);
    __builtin_memcpy(products + i, &together, sizeof together);
  }
  if (k == end) return;
  quad rest[Rows];  // of a row, with up to four streams
  SWITCHYARD_TILE_UNROLL
  for (int r = 0; r < Rows; ++r) __builtin_memcpy(&rest[r], products + r * Streams, Streams * sizeof(float));
  for (; k < end; ++k, rows += Rows) {
    quad right = {};
    SWITCHYARD_TILE_UNROLL
    for (int s = 0; s < Streams; ++s) right[s] = static_cast<float>(weights[s][k]);
    SWITCHYARD_TILE_UNROLL
    for (int r = 0; r < Rows; ++r) rest[r] += rows[r] * right;
  }
  SWITCHYARD_TILE_UNROLL
  for (int r = 0; r < Rows; ++r) __builtin_memcpy(products + r * Streams, &rest[r], Streams * sizeof(float));
}

/// to[r][f] = row r . feature f over a piece of the depth, for any number of rows in groups of up to `Rows` and of features of
/// contiguous weights. The order of the terms of a product depends on depth alone.
///
/// Features that are multiplied together stand far apart, so that memory is read in a few long streams, which the processor's
/// own prefetcher follows best. `next` is what is multiplied after this.
template <class Element, int Rows = most_rows>
SWITCHYARD_TILE_TARGET void multiply_rows_by_features(float const* rows, int row_count, depth_slice const& piece,
                                                      feature_tile<weight_view<Element>> const& weights,
                                                      feature_tile<weight_view<Element>> const& next, float* to,
                                                      std::int64_t stride) {
  int const groups = groups_of_rows(row_count);
  if constexpr (Rows > 1) {
    if (row_count <= groups * (Rows - 1)) {
      return multiply_rows_by_features<Element, Rows - 1>(rows, row_count, piece, weights, next, to, stride);
    }
  }
  constexpr int streams = features_beside(Rows), step = lanes * stored<Element>::parts;
  std::int64_t const by_steps = piece.length / step * step;
  int const each = (weights.features + streams - 1) / streams, each_next = (next.features + streams - 1) / streams;
  for (int i = 0; i < each; ++i) {
    Element const *now[streams], *later[streams];
    for (int s = 0; s < streams; ++s) {
      int const f = s * each + i;
      now[s] = weights.rows + (f < weights.features ? f : weights.features - 1) * weights.row_stride;
      later[s] = now[s];
      if (i + 1 < each) {
        if (f + 1 < weights.features) later[s] += weights.row_stride;
      } else if (s * each_next < next.features) {
        later[s] = next.rows + s * each_next * next.row_stride;
      }
    }
    // A group alone fetches the next KiB of its streams; several share the next feature.
    constexpr std::int64_t ahead = 1024 / sizeof(Element);
    fetched_streams<Element, streams> fetched;
    fetched.turn = groups > 1 ? by_steps : by_steps > ahead ? by_steps - ahead : 0;
    fetched.step = step / groups;
    for (int g = 0; g < groups; ++g) {
      for (int s = 0; s < streams; ++s) {
        fetched.from[s] = groups > 1 ? later[s] + by_steps / groups * g : now[s] + ahead;
        fetched.then[s] = later[s] + (ahead - by_steps);
      }
      row_group const group = group_of_rows(row_count, g);
      float const* const from = rows + group.first * row_floats(piece.depth) + piece.first * group.rows;
      float products[Rows * streams + 3] = {};
      if (group.rows == Rows) {
        multiply_group<Element, Rows, streams>(from, now, fetched, by_steps, piece.length, products);
      } else {
        constexpr int fewer = Rows > 1 ? Rows - 1 : 1;
        multiply_group<Element, fewer, streams>(from, now, fetched, by_steps, piece.length, products);
      }
      for (int s = 0; s < streams && s * each + i < weights.features; ++s) {
        float* const column = to + group.first * stride + s * each + i;
        // There are no more, but the compiler does not know that.
        for (int r = 0; r < group.rows && r < Rows; ++r) column[r * stride] = products[r * streams + s];
      }
    }
  }
}

/// Neighbouring weights of a row, from a multiple of 32 on, as floats.
template <class Operand>
SWITCHYARD_TILE_TARGET __attribute__((flatten)) inline void restore_row(Operand const& weights, int expert, int row,
                                                                        std::int64_t first, int count, float* to) {
  constexpr int granule = Operand::granule;
  static_assert(granule > 0 && 32 % granule == 0, "switchyard: the granule of an operand is 1, 2, 4, 8, 16 or 32.");
  int const column = static_cast<int>(first);
  int k = 0;
  for (; k + granule <= count; k += granule) weights.read(expert, row, column + k, granule, to + k);
  if (k < count) weights.read(expert, row, column + k, count - k, to + k);
}

/// How rows of weights are restored: as floats in the order of `order`'s vectors. This one serves every operand; those that can be read
/// faster have one of their own.
template <class Operand>
struct restored {
  using order = float;
  SWITCHYARD_TILE_TARGET static void read(Operand const& weights, int expert, int row, std::int64_t first, int count,
                                          float* to) {
    restore_row(weights, expert, row, first, count, to);
  }
  /// Multiplies without restoring to memory first, with the same bits; false where it is better not to.
  SWITCHYARD_TILE_TARGET static bool multiply(float const*, int, depth_slice const&, feature_tile<Operand> const&,
                                              feature_tile<Operand> const&, float*, std::int64_t) {
    return false;
  }
  /// Whether there is `add_change(rows, row_count, depth, tile, to, stride)`: to[r][f] += row r . what the change of an operand with a base has
  /// for feature f, for a depth that is a multiple of 32.
  static constexpr bool multiplies_changes = false;
};

/// Puts rows side by side for `multiply_rows_by_restored`, in the order of `Order`'s vectors.
template <class Element, class Order>
SWITCHYARD_TILE_TARGET void group_rows_in_order(Element const* const* rows, int row_count, std::int64_t depth,
                                                float* to) {
  using source = stored<summed_as_float<Element>>;
  constexpr int parts = stored<Order>::in_order ? 1 : stored<Order>::parts, step = lanes * parts;
  std::int64_t const by_steps = depth / step * step;
  for (int g = 0; g < groups_of_rows(row_count); ++g) {
    row_group const group = group_of_rows(row_count, g);
    float* const begin = to + group.first * row_floats(depth);
    for (int r = 0; r < group.rows; ++r) {
      Element const* const from = rows[group.first + r];
      for (std::int64_t k = 0; k < by_steps; k += step) {
        if constexpr (parts == 1) {
          floats const values = source::load(reinterpret_cast<summed_as_float<Element> const*>(from + k), 0);
          __builtin_memcpy(begin + k * group.rows + r * lanes, &values, sizeof values);
        } else {
          for (int p = 0; p < parts; ++p) {
            float* const vector = begin + (k + p * lanes) * group.rows + r * lanes;
            for (int i = 0; i < lanes; ++i) vector[i] = static_cast<float>(from[k + i * parts + p]);
          }
        }
      }
      for (std::int64_t k = by_steps; k < depth; ++k) begin[k * group.rows + r] = static_cast<float>(from[k]);
    }
  }
}

/// As `multiply_rows_by_features`, of weights that are restored: some features and a piece of their depth at a time, which stay in the
/// first-level cache.
template <class Operand>
SWITCHYARD_TILE_TARGET void multiply_rows_by_restored(float const* rows, int row_count, depth_slice const& piece,
                                                      feature_tile<Operand> const& tile,
                                                      feature_tile<Operand> const& next, float* to,
                                                      std::int64_t stride) {
  using order = typename restored<Operand>::order;
  using weight = std::conditional_t<std::is_same_v<order, float>, float, widened<order>>;
  if (restored<Operand>::multiply(rows, row_count, piece, tile, next, to, stride)) return;
  constexpr int together = 8;
  alignas(64) float memory[together * panel_pitch];
  float part[item_rows * together];
  for (int begin = 0; begin < tile.features; begin += together) {
    int const count = tile.features - begin < together ? tile.features - begin : together;
    for (std::int64_t k = 0; k < piece.depth; k += panel_depth) {
      int const length = piece.depth - k < panel_depth ? static_cast<int>(piece.depth - k) : panel_depth;
      for (int f = 0; f < count; ++f) {
        restored<Operand>::read(*tile.weights, tile.expert, tile.first + begin + f, k, length,
                                memory + f * panel_pitch);
      }
      multiply_rows_by_features<weight>(rows, row_count, {piece.depth, k, length},
                                        {reinterpret_cast<weight const*>(memory), panel_pitch, 1, count}, {}, part,
                                        together);
      for (int r = 0; r < row_count; ++r) {
        for (int f = 0; f < count; ++f) {
          float const value = part[r * together + f];
          float& sum = to[r * stride + begin + f];
          sum = k == 0 ? value : sum + value;
        }
      }
    }
  }
}

/// A panel is the tokens of a product side by side: `panel_width` of them or, for the last few, `lanes`.
inline constexpr int panel_width = 2 * lanes;
inline constexpr int panel_features = SWITCHYARD_PANEL_FEATURES;
/// Panels and tiles of features of one item: wide vectors leave less room on the stack.
inline constexpr int item_panels = lanes < 16 ? 12 : 4, item_tiles = lanes < 16 ? 6 : 4;
static_assert(item_panels * item_tiles * panel_features * panel_width + panel_features * panel_pitch <= item_floats);

/// Lane l of the result comes from lane l - `Distance` of the other vector where l has the bit `Distance`, else from x; `Low` is the
/// other way round.
template <int Distance, bool Low, int... Lane>
SWITCHYARD_TILE_TARGET inline floats exchange_lanes(floats x, floats y, std::integer_sequence<int, Lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(
      x, y, ((Lane & Distance) == 0 ? Lane + (Low ? 0 : Distance) : lanes + Lane - (Low ? Distance : 0))...);
#else
  return __builtin_shuffle(
      x, y,
      words{static_cast<std::uint32_t>((Lane & Distance) == 0 ? Lane + (Low ? 0 : Distance)
                                                              : lanes + Lane - (Low ? Distance : 0))...});
#endif
}

/// Lane j of vector i and lane i of vector j change places.
template <int Distance = 1>
SWITCHYARD_TILE_TARGET inline void transpose(floats (&square)[lanes]) {
  constexpr auto all = std::make_integer_sequence<int, lanes>{};
  SWITCHYARD_TILE_UNROLL
  for (int i = 0; i < lanes; ++i) {
    if ((i & Distance) != 0) continue;
    floats const x = square[i], y = square[i + Distance];
    square[i] = exchange_lanes<Distance, true>(x, y, all);
    square[i + Distance] = exchange_lanes<Distance, false>(x, y, all);
  }
  if constexpr (2 * Distance < lanes) transpose<2 * Distance>(square);
}

/// panel[depth_position(k) * width + i] = element k of row i, as a float; rows past the last are zero. `Order` is the type whose
/// loads say where an element stands.
template <class Element, class Order = Element>
SWITCHYARD_TILE_TARGET void pack_panel(Element const* const* rows, int row_count, int width, std::int64_t depth,
                                       float* panel) {
  constexpr bool same = std::is_same_v<Element, Order>;
  using loaded = std::conditional_t<same, Element, summed_as_float<Element>>;
  using source = stored<loaded>;
  constexpr int step = lanes * source::parts;
  std::int64_t const by_steps = depth / step * step;
  for (std::int64_t k = 0; k < by_steps; k += step) {
    for (int begin = 0; begin < width; begin += lanes) {
      for (int part = 0; part < source::parts; ++part) {
        floats square[lanes];
        for (int i = 0; i < lanes; ++i) {
          square[i] = begin + i < row_count ? source::load(reinterpret_cast<loaded const*>(rows[begin + i] + k), part)
                                            : floats{};
        }
        transpose(square);
        for (int j = 0; j < lanes; ++j) {
          std::int64_t const place = same ? k + part * lanes + j : depth_position<Order>(k + j, depth);
          __builtin_memcpy(panel + place * width + begin, &square[j], sizeof(floats));
        }
      }
    }
  }
  for (std::int64_t k = by_steps; k < depth; ++k) {
    float* const to = panel + depth_position<Order>(k, depth) * width;
    for (int i = 0; i < width; ++i) to[i] = i < row_count ? static_cast<float>(rows[i][k]) : 0.0f;
  }
}

/// to[i * stride + f] = features[f][i] + bias[f], for the rows and features of products by panels.
SWITCHYARD_TILE_TARGET inline void put_rows(float const* const* features, int feature_count, int row_count,
                                            float const* bias, float* to, std::int64_t stride) {
  int f = 0;
  for (; f + lanes <= feature_count; f += lanes) {
    floats shift;
    __builtin_memcpy(&shift, bias + f, sizeof shift);
    for (int begin = 0; begin < row_count; begin += lanes) {
      floats square[lanes];
      for (int j = 0; j < lanes; ++j) __builtin_memcpy(&square[j], features[f + j] + begin, sizeof(floats));
      transpose(square);
      int const rows = row_count - begin < lanes ? row_count - begin : lanes;
      for (int i = 0; i < rows; ++i) {
        square[i] += shift;
        __builtin_memcpy(to + (begin + i) * stride + f, &square[i], sizeof(floats));
      }
    }
  }
  for (int i = 0; i < row_count; ++i) {
    for (int j = f; j < feature_count; ++j) to[i * stride + j] = features[j][i] + bias[j];
  }
}

/// panel[depth_position(k)] = what the rows of a panel have for element k.
template <class Element>
SWITCHYARD_TILE_TARGET void put_values(float const* values, int width, std::int64_t k, std::int64_t depth,
                                       float* panel) {
  float* const to = panel + depth_position<Element>(k, depth) * width;
  for (int i = 0; i < width; ++i) to[i] = values[i];
}

/// A piece of the weights of some features as floats, in the order of panels, `panel_pitch` apart; features past the last
/// are zero. Pieces before the last of a row are `panel_depth` long, which is a multiple of any step.
template <class Element>
SWITCHYARD_TILE_TARGET ready_weights widen_rows(feature_tile<weight_view<Element>> const& tile, std::int64_t first,
                                                int depth, float* memory) {
  Element const* const from = tile.rows + first * tile.column_stride;
  float* to = memory;
  for (int f = 0; f < panel_features; ++f, to += panel_pitch) {
    if (f >= tile.features) {
      for (int k = 0; k < depth; ++k) to[k] = 0.0f;
    } else if (tile.column_stride == 1) {
      widen_row(from + f * tile.row_stride, depth, to);
    }
  }
  // Features that lie beside each other are read beside each other.
  for (int k = 0; k < depth && tile.column_stride != 1; ++k) {
    Element const* const column = from + k * tile.column_stride;
    float* const place = memory + depth_position<Element>(k, depth);
    for (int f = 0; f < tile.features; ++f) place[f * panel_pitch] = static_cast<float>(column[f * tile.row_stride]);
  }
  return {memory, panel_pitch * static_cast<std::int64_t>(sizeof(float))};
}

/// The same of weights that are restored.
template <class Operand>
SWITCHYARD_TILE_TARGET ready_weights restore_rows(feature_tile<Operand> const& tile, std::int64_t first, int depth,
                                                  float* memory) {
  float* to = memory;
  for (int f = 0; f < panel_features; ++f, to += panel_pitch) {
    if (f < tile.features) {
      restored<Operand>::read(*tile.weights, tile.expert, tile.first + f, first, depth, to);
    } else {
      for (int k = 0; k < depth; ++k) to[k] = 0.0f;
    }
  }
  return {memory, panel_pitch * static_cast<std::int64_t>(sizeof(float))};
}

/// sums[f][i] (+)= sum over depth of weights[f][k] * panel[k][i], for all features and `Vectors` vectors of tokens. The
/// rows `fetched` are brought to the second-level cache meanwhile.
///
/// Each `chain_depth` of the depth is summed up by itself. Half a panel has two such sums at a time where it has few of them: two units
/// that take four cycles for a product want eight.
template <int Vectors>
SWITCHYARD_TILE_TARGET void multiply_panel(ready_weights const& ready, float const* panel, int depth, bool first,
                                           float* sums, fetched_rows const& fetched) {
  constexpr int chain_depth = panel_features < 8 ? panel_depth / 2 : panel_depth;
  constexpr int chains = Vectors * panel_features < 8 ? 2 : 1, width = Vectors * lanes, piece = 16;
  float const* const weights = static_cast<float const*>(ready.first);
  for (int from = 0; from < depth; from += chains * chain_depth) {
    floats sum[chains][panel_features][Vectors] = {};
    auto const add = [&](auto number, int begin, int const last) SWITCHYARD_TILE_TARGET {
      constexpr int together = decltype(number)::value;
      for (int end; begin < last; begin = end) {
        end = last - begin < piece ? last : begin + piece;
        for (int c = 0; c < together; ++c) {
          for (int row = 0; row < fetched.rows; ++row) {
            __builtin_prefetch(fetched.first + row * fetched.stride + (begin + c * chain_depth) * fetched.element_bytes,
                               0, 2);
          }
        }
        for (int k = begin; k < end; ++k) {
          SWITCHYARD_TILE_UNROLL
          for (int c = 0; c < together; ++c) {
            int const at = k + c * chain_depth;
            floats of_panel[Vectors];
            SWITCHYARD_TILE_UNROLL
            for (int v = 0; v < Vectors; ++v) {
              of_panel[v] = load_floats(panel + at * width + v * lanes);
              // Panels come from the second-level cache, 16 floats at a time.
              if (v * lanes % 16 == 0) __builtin_prefetch(panel + (at + 16) * width + v * lanes);
            }
            SWITCHYARD_TILE_UNROLL
            for (int f = 0; f < panel_features; ++f) {
              SWITCHYARD_TILE_UNROLL
              for (int v = 0; v < Vectors; ++v) sum[c][f][v] += of_panel[v] * weights[f * panel_pitch + at];
            }
          }
        }
      }
    };
    int const left = depth - from, length = left < chain_depth ? left : chain_depth;
    int const in_all = chains == 1 ? length : left > length ? left - length : 0;
    add(std::integral_constant<int, chains>{}, from, from + in_all);
    if constexpr (chains > 1) add(std::integral_constant<int, 1>{}, from + in_all, from + length);
    SWITCHYARD_TILE_UNROLL
    for (int f = 0; f < panel_features; ++f) {
      SWITCHYARD_TILE_UNROLL
      for (int v = 0; v < Vectors; ++v) {
        float* const to = sums + f * width + v * lanes;
        floats total = first && from == 0 ? floats{} : load_floats(to);
        SWITCHYARD_TILE_UNROLL
        for (int c = 0; c < chains; ++c) total += sum[c][f][v];
        __builtin_memcpy(to, &total, sizeof total);
      }
    }
  }
}

/// to[i] = activation of a gate and an up value, for a vector of them, biases added first. The arrays of one length let the compiler make
/// vectors of any activation that does not branch.
template <class Activation, bool Gated>
SWITCHYARD_TILE_TARGET inline void activate_vector(float const* gate, float const* up, floats weights, float gate_bias,
                                                   float up_bias, float* to) {
  float of_gate[lanes], of_up[lanes], result[lanes];
  floats const shifted_up = weights * load_floats(up) + up_bias;
  __builtin_memcpy(of_up, &shifted_up, sizeof of_up);
  if constexpr (Gated) {
    floats const shifted_gate = weights * load_floats(gate) + gate_bias;
    __builtin_memcpy(of_gate, &shifted_gate, sizeof of_gate);
    for (int i = 0; i < lanes; ++i) result[i] = Activation::apply(of_gate[i], of_up[i]);
  } else {
    for (int i = 0; i < lanes; ++i) result[i] = Activation::apply(of_up[i]);
  }
  __builtin_memcpy(to, result, sizeof result);
}

/// The same of `width` rows; `weights`, where it is not null, multiplies the products of each row.
template <class Activation, bool Gated>
SWITCHYARD_TILE_TARGET void activate(float const* gate, float const* up, float const* weights, float gate_bias,
                                     float up_bias, int width, float* to) {
  floats const ones = floats{} + 1.0f;
  int i = 0;
  for (; i + lanes <= width; i += lanes) {
    activate_vector<Activation, Gated>(Gated ? gate + i : nullptr, up + i,
                                       weights == nullptr ? ones : load_floats(weights + i), gate_bias, up_bias,
                                       to + i);
  }
  if (i == width) return;
  // The rest takes the same way, so that a value has the same bits wherever it stands.
  float part[4][lanes] = {};
  for (int k = 0; i + k < width; ++k) {
    part[0][k] = Gated ? gate[i + k] : 0.0f;
    part[1][k] = up[i + k];
    part[2][k] = weights == nullptr ? 1.0f : weights[i + k];
  }
  activate_vector<Activation, Gated>(part[0], part[1], load_floats(part[2]), gate_bias, up_bias, part[3]);
  for (int k = 0; i + k < width; ++k) to[i + k] = part[3][k];
}

/// Rows that `add_low_rank_terms` takes together at most: their sums with four features fit the registers.
inline constexpr int term_rows = lanes < 16 ? 2 : 4;

/// to[r][f * feature_step] += narrow[r] . tall[f] for `Rows` rows and all features. Rows of `tall` are `rank` long; narrow ones have
/// zeros up to a multiple of 32, in the order of `depth_position`.
template <class Element, int Rows = term_rows>
SWITCHYARD_TILE_TARGET void add_low_rank_terms(Element const* tall, int rank, int features, float const* const* narrow,
                                               int rows, float* const* to, std::int64_t feature_step) {
  if constexpr (Rows > 1) {
    if (rows < Rows) {
      return add_low_rank_terms<Element, Rows - 1>(tall, rank, features, narrow, rows, to, feature_step);
    }
  }
  using source = stored<Element>;
  constexpr int together = 4, most = 16, step = lanes * source::parts;
  int const by_steps = rank / step * step, rest = rank - by_steps;
  Element padded[most * step];  // what a row of `tall` has behind its whole steps, and zeros
  if (rest > 0) {
    for (int f = 0; f < most; ++f) {
      for (int k = rest; k < step; ++k) padded[f * step + k] = Element(0.0f);
    }
  }
  for (int begin = 0; begin < features; begin += most, tall += most * std::int64_t{rank}) {
    int const count = features - begin < most ? features - begin : most;
    for (int f = 0; rest > 0 && f < count; ++f) {
      Element const* const from = tall + f * std::int64_t{rank} + by_steps;
      for (int k = 0; k < rest; ++k) padded[f * step + k] = from[k];
    }
    for (int first = 0; first < count; first += together) {
      floats sum[Rows][together] = {};
      auto const add = [&](Element const* weights, std::int64_t pitch, int k) SWITCHYARD_TILE_TARGET {
        SWITCHYARD_TILE_UNROLL
        for (int p = 0; p < source::parts; ++p) {
          floats right[together];
          SWITCHYARD_TILE_UNROLL
          for (int f = 0; f < together; ++f) {
            right[f] = source::load(weights + (first + f < count ? first + f : first) * pitch, p);
          }
          SWITCHYARD_TILE_UNROLL
          for (int r = 0; r < Rows; ++r) {
            floats left;
            __builtin_memcpy(&left, narrow[r] + k + p * lanes, sizeof(floats));
            SWITCHYARD_TILE_LOADED(left);
            SWITCHYARD_TILE_UNROLL
            for (int f = 0; f < together; ++f) sum[r][f] += left * right[f];
          }
        }
      };
      for (int k = 0; k < by_steps; k += step) add(tall + k, rank, k);
      if (rest > 0) add(padded, step, by_steps);
      int const real = count - first < together ? count - first : together;
      float terms[Rows][together];
      SWITCHYARD_TILE_UNROLL
      for (int r = 0; r < Rows; ++r) {
        quad const of_row = sums_of(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
        __builtin_memcpy(terms[r], &of_row, sizeof of_row);
      }
      for (int f = 0; f < real; ++f) {
        SWITCHYARD_TILE_UNROLL
        for (int r = 0; r < Rows; ++r) to[r][(begin + first + f) * feature_step] += terms[r][f];
      }
    }
  }
}

/// sums[f][i] += narrow row i . tall[f] for all features and those of `Vectors` vectors of rows that are `taken`. Narrow rows stand side
/// by side: number k of row i at narrow[k * stride + i].
template <class Element, int Vectors>
SWITCHYARD_TILE_TARGET void add_low_rank_terms_to_vectors(Element const* tall, int rank, int features,
                                                          float const* narrow, std::int64_t stride,
                                                          integers const* taken, float* sums, int width) {
  constexpr int together = 6;
  for (int first = 0; first < features; first += together, tall += together * std::int64_t{rank}) {
    int const real = features - first < together ? features - first : together;
    floats sum[together][Vectors] = {};
    std::int64_t next[together];
    SWITCHYARD_TILE_UNROLL
    for (int f = 0; f < together; ++f) next[f] = (f < real ? f : 0) * std::int64_t{rank};
    float const* from = narrow;
    for (int k = 0; k < rank; ++k, from += stride) {
      floats rows[Vectors];
      SWITCHYARD_TILE_UNROLL
      for (int v = 0; v < Vectors; ++v) rows[v] = load_floats(from + v * lanes);
      SWITCHYARD_TILE_UNROLL
      for (int f = 0; f < together; ++f) {
        float const weight = static_cast<float>(tall[next[f] + k]);
        SWITCHYARD_TILE_UNROLL
        for (int v = 0; v < Vectors; ++v) sum[f][v] += rows[v] * weight;
      }
    }
    for (int f = 0; f < real; ++f) {
      SWITCHYARD_TILE_UNROLL
      for (int v = 0; v < Vectors; ++v) {
        float* const at = sums + (first + f) * width + v * lanes;
        // Other rows stay as they are, to the bit.
        floats const old = load_floats(at), added = old + sum[f][v];
        integers const result =
            (reinterpret_cast<integers>(added) & taken[v]) | (reinterpret_cast<integers>(old) & ~taken[v]);
        __builtin_memcpy(at, &result, sizeof result);
      }
    }
  }
}

/// The same of those rows of a panel whose bit is set in `rows`.
template <class Element>
SWITCHYARD_TILE_TARGET void add_low_rank_terms_to_panel(Element const* tall, int rank, int features,
                                                        float const* narrow, std::int64_t stride, std::uint32_t rows,
                                                        float* sums, int width) {
  integers taken[2] = {};
  for (int i = 0; i < width; ++i) taken[i / lanes][i % lanes] = (rows >> i & 1) != 0 ? -1 : 0;
  std::uint32_t const second = width > lanes ? rows >> lanes : 0,
                      first = rows & static_cast<std::uint32_t>((std::uint64_t{1} << lanes) - 1);
  if (first != 0 && second != 0) {
    add_low_rank_terms_to_vectors<Element, 2>(tall, rank, features, narrow, stride, taken, sums, width);
  } else if (first != 0) {
    add_low_rank_terms_to_vectors<Element, 1>(tall, rank, features, narrow, stride, taken, sums, width);
  } else if (second != 0) {
    add_low_rank_terms_to_vectors<Element, 1>(tall, rank, features, narrow + lanes, stride, taken + 1, sums + lanes,
                                              width);
  }
}

#include <switchyard/backend/cpu/integer_products.inl>
#include <switchyard/backend/cpu/masked.inl>
#include <switchyard/backend/cpu/narrow.inl>
#include <switchyard/backend/cpu/pairs.inl>
#include <switchyard/backend/cpu/product_keys.inl>
#include <switchyard/backend/cpu/quantised.inl>
#include <switchyard/backend/cpu/quantised_inputs_first.inl>
#include <switchyard/backend/cpu/rows.inl>
