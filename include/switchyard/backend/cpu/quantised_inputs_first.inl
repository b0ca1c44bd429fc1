// Part of tile.inl: few rows and weights that are stored inputs first, GPTQ's and AWQ's. Lanes are output features, so nothing is summed across them; what a
// group of 128 inputs has in common, a scale and a zero for each feature, meets the group's sums.

/// The lowest code of each word as a float, 8 less.
SWITCHYARD_TILE_TARGET inline floats centred_codes(words codes) {
#if defined(SWITCHYARD_TILE_EXPANDS)
  floats table;
  __builtin_memcpy(&table, values_of_codes<codes_around<8>>.of_code, sizeof table);
  return look_up(table, codes);
#else
  return __builtin_convertvector(reinterpret_cast<integers>(codes & 15u), floats) - 8.0f;
#endif
}

/// The rows of a group: element k of row r. `rest` has those that fill no vector, one row after the other.
struct inputs_of_rows {
  float const* rows;
  int count;
  std::int64_t by_vectors;
  float rest[most_rows * lanes];

  SWITCHYARD_TILE_TARGET inputs_of_rows(float const* from, int row_count, std::int64_t depth)
      : rows(from), count(row_count), by_vectors(depth / lanes * lanes) {
    for (int r = 0; r < count; ++r) {
      for (std::int64_t k = by_vectors; k < depth; ++k) rest[r * lanes + k - by_vectors] = rows[k * count + r];
    }
  }
  /// Up to the end of a vector the next elements follow.
  SWITCHYARD_TILE_TARGET float const* at(std::int64_t k, int r) const {
    if (k >= by_vectors) return rest + r * lanes + (k - by_vectors);
    return rows + (k / lanes * count + r) * lanes + k % lanes;
  }
  /// Of the elements from `first` on.
  SWITCHYARD_TILE_TARGET float sum(std::int64_t first, std::int64_t end, int r) const {
    floats sums = {};
    std::int64_t k = first;
    for (; k + lanes <= end && k + lanes <= by_vectors; k += lanes) sums += load_floats(at(k, r));
    float result = 0.0f;
    for (; k < end; ++k) result += *at(k, r);
    for (int i = 0; i < lanes; ++i) result += sums[i];
    return result;
  }
};

/// How the words of a format become vectors of codes, one for each of `inputs` inputs: lane l of vector v has feature `feature(v, l)` of some
/// that begin at a multiple of eight.
template <class Format>
struct first_inputs;

template <>
struct first_inputs<quantised::gptq> {
  static constexpr int inputs = 8;
  static constexpr int feature(int v, int lane) { return v * lanes + lane; }
  static std::uint32_t const* at(quantised::gptq const& w, int expert, int input, int feature) {
    return w.qweight + (std::int64_t{expert} * (w.columns / 8) + input / 8) * w.rows + feature;
  }
  SWITCHYARD_TILE_TARGET static words load(std::uint32_t const* from, int v, int features) {
    words result = {};
    int const left = features - v * lanes;
    if (left >= lanes) {
      __builtin_memcpy(&result, from + v * lanes, sizeof result);
      SWITCHYARD_TILE_LOADED(result);
    } else if (left > 0) {
      __builtin_memcpy(&result, from + v * lanes, static_cast<std::size_t>(left) * sizeof(std::uint32_t));
    }
    return result;
  }
  SWITCHYARD_TILE_TARGET static words codes(words all, int n) { return n == 0 ? all : all >> (4 * n); }
  static int zero(quantised::gptq const& w, std::int64_t line, int feature) {
    return static_cast<int>(w.qzeros[line * (w.rows / 8) + feature / 8] >> feature % 8 * 4 & 15u) + w.added_to_zero;
  }
};

/// A vector has a word in each eight of its lanes, in turn, and each lane its own feature of that.
template <>
struct first_inputs<quantised::awq> {
  static constexpr int inputs = 1, together = lanes < 8 ? 1 : lanes / 8;  // words of a vector
  static constexpr int in_word(int v, int lane) { return lanes < 8 ? v % 2 * lanes + lane : lane / together; }
  static constexpr int feature(int v, int lane) {
    return lanes < 8 ? v * lanes + lane : v * lanes + lane % together * 8 + lane / together;
  }
  static constexpr int shift(int output) { return (output % 2 * 4 + output / 2) * 4; }
  static std::uint32_t const* at(quantised::awq const& w, int expert, int input, int feature) {
    return w.qweight + (std::int64_t{expert} * w.columns + input) * (w.rows / 8) + feature / 8;
  }
  SWITCHYARD_TILE_TARGET static words load(std::uint32_t const* from, int v, int features) {
    if (v * lanes >= features) return words{};
    std::uint32_t const* const word = from + v * lanes / 8;
    words all = {};
    if constexpr (together > 1) {
      if (features - v * lanes >= lanes) {
        std::uint64_t two;
        __builtin_memcpy(&two, word, sizeof two);
        typedef std::uint64_t long_words __attribute__((vector_size(SWITCHYARD_TILE_BYTES)));
        all = reinterpret_cast<words>(long_words{} + two);
      } else {
        all += *word;
      }
    } else {
      all += *word;
    }
    return all >> shifts(v, std::make_integer_sequence<int, lanes>{});
  }
  template <int... Lane>
  SWITCHYARD_TILE_TARGET static words shifts(int v, std::integer_sequence<int, Lane...>) {
    return words{static_cast<std::uint32_t>(shift(in_word(v, Lane)))...};
  }
  SWITCHYARD_TILE_TARGET static words codes(words all, int) { return all; }
  static int zero(quantised::awq const& w, std::int64_t line, int feature) {
    return static_cast<int>(w.qzeros[line * (w.rows / 8) + feature / 8] >> shift(feature % 8) & 15u);
  }
};

/// Inputs that are fetched ahead, and vectors of features that are multiplied together beside some rows.
inline constexpr int inputs_ahead = 64;
constexpr int grouped_vectors_beside(int rows) {
  int const fit = (SWITCHYARD_TILE_REGISTERS - 4) / (rows + 1);
  if (lanes < 8) return fit < 4 ? 2 : 4;  // whole words
  return fit > 4 ? 4 : fit < 1 ? 1 : fit;
}

/// sums[v][r] += row r . the codes, 8 less, of vector v's features for up to eight inputs from `input` on; `from` moves on by `step` for every `inputs`.
template <class Format, int Rows, int Vectors>
SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE inline void add_inputs(inputs_of_rows const& x, int input, int count,
                                                                     bool fetches, int features, std::int64_t step,
                                                                     std::uint32_t const*& from,
                                                                     floats (&sums)[Vectors][Rows]) {
  using format = first_inputs<Format>;
  float const* values[Rows];
  SWITCHYARD_TILE_UNROLL
  for (int r = 0; r < Rows; ++r) values[r] = x.at(input, r);
  words codes[Vectors] = {};
  SWITCHYARD_TILE_UNROLL
  for (int n = 0; n < count; ++n) {
    if (n % format::inputs == 0) {
      for (int word = 0; fetches && word < features * format::inputs / 8; word += 16) {
        __builtin_prefetch(from + inputs_ahead / format::inputs * step + word);
      }
      SWITCHYARD_TILE_UNROLL
      for (int v = 0; v < Vectors; ++v) codes[v] = format::load(from, v, features);
      from += step;
    }
    floats right[Vectors];
    SWITCHYARD_TILE_UNROLL
    for (int v = 0; v < Vectors; ++v) right[v] = centred_codes(format::codes(codes[v], n % format::inputs));
    SWITCHYARD_TILE_UNROLL
    for (int r = 0; r < Rows; ++r) {
      // Vectors of four end in between.
      floats const left = floats{} + (lanes < 8 ? *x.at(input + n, r) : values[r][n]);
      SWITCHYARD_TILE_UNROLL
      for (int v = 0; v < Vectors; ++v) sums[v][r] += left * right[v];
    }
  }
}

/// to[r][f] = row r . feature f for `Rows` rows and some features from `first` on, at most `Vectors` vectors.
template <class Format, int Rows, int Vectors>
SWITCHYARD_TILE_TARGET void multiply_inputs(inputs_of_rows const& x, int depth, Format const& w, int expert, int first,
                                            int features, float* to, std::int64_t stride) {
  using format = first_inputs<Format>;
  constexpr int group = Format::group;
  floats sums[Vectors][Rows] = {};
  std::int64_t const step = format::at(w, expert, format::inputs, first) - format::at(w, expert, 0, first);
  std::uint32_t const* from = format::at(w, expert, 0, first);
  for (int k = 0; k < depth; k += group) {
    int const end = depth - k < group ? depth : k + group;
    floats of_group[Vectors][Rows] = {};
    int i = k;
    for (; i + 8 <= end; i += 8) {
      add_inputs<Format, Rows, Vectors>(x, i, 8, i + inputs_ahead < depth, features, step, from, of_group);
    }
    if (i < end) add_inputs<Format, Rows, Vectors>(x, i, end - i, false, features, step, from, of_group);
    std::int64_t const line = expert * w.groups() + k / group;
    float all[Rows];
    for (int r = 0; r < Rows; ++r) all[r] = x.sum(k, end, r);
    for (int v = 0; v < Vectors; ++v) {
      float scales[lanes] = {}, zeros[lanes] = {};
      for (int l = 0; l < lanes; ++l) {
        int const f = format::feature(v, l);
        if (f >= features) continue;
        scales[l] = static_cast<float>(w.scales[line * w.rows + first + f]);
        zeros[l] = static_cast<float>(format::zero(w, line, first + f) - 8);
      }
      floats const scale = load_floats(scales), zero = load_floats(zeros);
      for (int r = 0; r < Rows; ++r) sums[v][r] += (of_group[v][r] - zero * all[r]) * scale;
    }
  }
  for (int v = 0; v < Vectors; ++v) {
    for (int r = 0; r < Rows; ++r) {
      float values[lanes];
      put_floats(sums[v][r], values);
      for (int l = 0; l < lanes; ++l) {
        int const f = format::feature(v, l);
        if (f < features) to[r * stride + f] = values[l];
      }
    }
  }
}

/// The same for groups of `Rows` rows and of one less, and the features of a tile, which begins at a multiple of eight and has one.
template <class Format, int Rows = most_rows>
SWITCHYARD_TILE_TARGET void multiply_rows_by_inputs(float const* rows, int row_count, std::int64_t depth,
                                                    coded_tile<Format> const& tile, float* to, std::int64_t stride) {
  int const groups = groups_of_rows(row_count);
  if constexpr (Rows > 1) {
    if (row_count <= groups * (Rows - 1)) {
      return multiply_rows_by_inputs<Format, Rows - 1>(rows, row_count, depth, tile, to, stride);
    }
  }
  constexpr int fewer = Rows > 1 ? Rows - 1 : 1, vectors = grouped_vectors_beside(Rows), together = vectors * lanes;
  for (int f = 0; f < tile.features; f += together) {
    int const features = tile.features - f < together ? tile.features - f : together;
    for (int g = 0; g < groups; ++g) {
      row_group const group = group_of_rows(row_count, g);
      inputs_of_rows const x(rows + group.first * row_floats(depth), group.rows, depth);
      float* const first = to + group.first * stride + f;
      int const depth_of_rows = static_cast<int>(depth);
      if (group.rows == Rows) {
        multiply_inputs<Format, Rows, vectors>(x, depth_of_rows, *tile.matrix, tile.expert, tile.first + f, features,
                                               first, stride);
      } else {
        multiply_inputs<Format, fewer, vectors>(x, depth_of_rows, *tile.matrix, tile.expert, tile.first + f, features,
                                                first, stride);
      }
    }
  }
}

template <class Format>
concept is_inputs_first = requires {
  first_inputs<Format>::inputs;
};

template <class Element, class Format>
requires is_inputs_first<Format>
struct restored<quantised_matrix<Element, Format>> {
  using operand = quantised_matrix<Element, Format>;
  using order = float;

  SWITCHYARD_TILE_TARGET static void read(operand const& weights, int expert, int row, std::int64_t first, int count,
                                          float* to) {
    restore_row(weights, expert, row, first, count, to);
  }
  SWITCHYARD_TILE_TARGET static bool multiply(float const* rows, int row_count, depth_slice const& piece,
                                              feature_tile<operand> const& tile, feature_tile<operand> const&,
                                              float* to, std::int64_t stride) {
    if (tile.first % 8 != 0 || tile.features % 8 != 0) return false;
    multiply_rows_by_inputs(rows, row_count, piece.depth,
                            coded_tile<Format>{&tile.weights->of, tile.expert, tile.first, tile.features}, to, stride);
    return true;
  }
  static constexpr bool multiplies_changes = false;
};

#undef SWITCHYARD_TILE_INLINE
