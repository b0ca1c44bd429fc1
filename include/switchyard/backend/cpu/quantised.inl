// Part of tile.inl, once per instruction set: quantised weights, widened by vectors to the floats that `read` of their format gives.

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

#define SWITCHYARD_TILE_INLINE __attribute__((always_inline))

SWITCHYARD_TILE_TARGET inline void put_floats(floats values, float* to) {
  __builtin_memcpy(to, &values, sizeof values);
}

/// Some features of a matrix in a format.
template <class Format>
struct coded_tile {
  Format const* matrix = nullptr;
  int expert = 0, first = 0, features = 0;
};

#if defined(SWITCHYARD_TILE_HALF)

#include <switchyard/backend/cpu/coded.inl>

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

/// sums[r * Streams + s] += the blocks of row r . those of the feature of stream s that are widened together; `number` counts within what is ready.
template <class Coded, int Rows, int Streams>
SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE inline void add_coded_run(float const* rows,
                                                                        coded_row const (&weights)[Streams], int block,
                                                                        ready_scales const (&scales)[Streams],
                                                                        int number, floats (&sums)[Rows * Streams]) {
  constexpr int vectors = Coded::run * coded_vectors;
  SWITCHYARD_TILE_UNROLL
  for (int s = 0; s < Streams; ++s) {
    floats right[vectors];
    Coded::load(weights[s], block, scales[s], number, right);
    SWITCHYARD_TILE_UNROLL
    for (int v = 0; v < vectors; ++v) {
      SWITCHYARD_TILE_UNROLL
      for (int r = 0; r < Rows; ++r) sums[r * Streams + s] += load_floats(rows + (v * Rows + r) * lanes) * right[v];
    }
  }
}

/// products[r * Streams + s] = row r . the feature of stream s, for a group of `Rows` rows, over `blocks` blocks of 32 weights. `found` has the
/// scales of their first piece, and gets those of the features `later`, whose codes are fetched meanwhile.
template <class Coded, int Rows, int Streams>
SWITCHYARD_TILE_TARGET void multiply_coded_group(float const* rows, coded_row const (&weights)[Streams],
                                                 coded_row const (&later)[Streams], int blocks,
                                                 found_scales (&found)[Streams], float* products) {
  constexpr int run = 32 * Coded::run;
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
    constexpr int together = Rows > 4 ? 2 : 4;  // blocks: more rows would not fit the registers
    int b = 0;
    for (; b + together <= count; b += together) {
      SWITCHYARD_TILE_UNROLL
      for (int s = 0; s < Streams; ++s) fetch_blocks<Coded, together>(later[s], first + b);
      SWITCHYARD_TILE_UNROLL
      for (int i = 0; i < together; i += Coded::run) {
        add_coded_run<Coded, Rows, Streams>(rows, weights, first + b + i, scales, b + i, sums);
        rows += run * Rows;
      }
    }
    for (; b < count; b += Coded::run, rows += run * Rows) {
      add_coded_run<Coded, Rows, Streams>(rows, weights, first + b, scales, b, sums);
    }
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
                                                    feature_tile<operand> const& next, float* to, std::int64_t stride) {
    if (!fits_dealt(piece.depth)) {
      return multiply_rows_by_restored(rows, row_count, piece, tile, next, to, stride);
    }
    coded_tile<Format> then;
    if (next.features > 0) then = {&next.weights->of, next.expert, next.first, next.features};
    multiply_rows_by_coded<dealt>(rows, row_count, piece.depth,
                                  coded_tile<Format>{&tile.weights->of, tile.expert, tile.first, tile.features}, then,
                                  to, stride);
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

#endif
