// Included by tile.hpp once per instruction set, each time inside another namespace and with other values of
//   SWITCHYARD_TILE_TARGET  the attribute that lets a function use the instruction set
//   SWITCHYARD_TILE_BYTES   bytes of one vector register
//   SWITCHYARD_TILE_ROWS    rows of the register tile
// Vectors are the compilers' vector extension, so the source is the same for all of them.

inline constexpr int lanes = SWITCHYARD_TILE_BYTES / 4;
typedef float floats __attribute__((vector_size(SWITCHYARD_TILE_BYTES)));
typedef std::uint32_t words __attribute__((vector_size(SWITCHYARD_TILE_BYTES)));

typedef float quad __attribute__((vector_size(16)));

template <int First, int Second, int Third, int Fourth>
SWITCHYARD_TILE_TARGET inline quad shuffle_quads(quad x, quad y) {
#if defined(__clang__)
  return __builtin_shufflevector(x, y, First, Second, Third, Fourth);
#else
  typedef int places __attribute__((vector_size(16)));
  return __builtin_shuffle(x, y, places{First, Second, Third, Fourth});
#endif
}

/// One vector load of stored elements, as floats. Two-byte elements come as two vectors, the even and the odd
/// ones: a product over depth may take its terms in any order as long as both operands agree.
template <class Element>
struct stored;

template <>
struct stored<float> {
  static constexpr int parts = 1;
  SWITCHYARD_TILE_TARGET static void load(float const* from, floats (&to)[1]) {
    __builtin_memcpy(&to[0], from, sizeof(floats));
  }
};

template <>
struct stored<bfloat16> {
  static constexpr int parts = 2;
  SWITCHYARD_TILE_TARGET static void load(bfloat16 const* from, floats (&to)[2]) {
    words pair;
    __builtin_memcpy(&pair, from, sizeof(words));
    to[0] = reinterpret_cast<floats>(pair << 16);
    to[1] = reinterpret_cast<floats>(pair & 0xffff0000u);
  }
};

template <>
struct stored<half> {
  static constexpr int parts = 2;
  SWITCHYARD_TILE_TARGET static void load(half const* from, floats (&to)[2]) {
    words pair;
    __builtin_memcpy(&pair, from, sizeof(words));
    words const bits[2] = {pair & 0xffffu, pair >> 16};
    for (int p = 0; p < 2; ++p) {  // as half::operator float
      words const magnitude = (bits[p] & 0x7fffu) << 13;
      floats const scaled = reinterpret_cast<floats>(magnitude) * 0x1p112f;
      words const special = reinterpret_cast<words>(magnitude >= 0x0f800000u) & 0x7f800000u;
      to[p] = reinterpret_cast<floats>(reinterpret_cast<words>(scaled) | special | ((bits[p] & 0x8000u) << 16));
    }
  }
};

/// The sums of four vectors.
SWITCHYARD_TILE_TARGET inline quad sums_of(floats const (&v)[4]) {
  quad part[4];
  for (int j = 0; j < 4; ++j) {
    quad piece[lanes / 4];
    __builtin_memcpy(piece, &v[j], sizeof(floats));
    part[j] = piece[0];
    for (int i = 1; i < lanes / 4; ++i) part[j] += piece[i];
  }
  quad const even = shuffle_quads<0, 4, 1, 5>(part[0], part[1]) + shuffle_quads<2, 6, 3, 7>(part[0], part[1]);
  quad const odd = shuffle_quads<0, 4, 1, 5>(part[2], part[3]) + shuffle_quads<2, 6, 3, 7>(part[2], part[3]);
  return shuffle_quads<0, 1, 4, 5>(even, odd) + shuffle_quads<2, 3, 6, 7>(even, odd);
}

/// c[r][j] += sum over depth of a[r][k] * b[j][k], for `Rows` x 4 dot products at once. What comes after `b` is fetched from
/// memory meanwhile: `next`, of the same strides.
template <class Element, int Rows>
SWITCHYARD_TILE_TARGET void tile(Element const* const* a, Element const* b, Element const* next, std::int64_t b_stride,
                                 std::int64_t depth, float* c, std::int64_t c_stride) {
  using source = stored<Element>;
  constexpr int parts = source::parts;
  constexpr int step = lanes * parts;
  floats sum[Rows][4] = {};
  std::int64_t k = 0;
  for (; k + step <= depth; k += step) {
    floats right[4][parts];
    SWITCHYARD_TILE_UNROLL
    for (int j = 0; j < 4; ++j) {
      source::load(b + j * b_stride + k, right[j]);
      __builtin_prefetch(next + j * b_stride + k);
    }
    SWITCHYARD_TILE_UNROLL
    for (int r = 0; r < Rows; ++r) {
      floats left[parts];
      source::load(a[r] + k, left);
      SWITCHYARD_TILE_UNROLL
      for (int j = 0; j < 4; ++j) {
        SWITCHYARD_TILE_UNROLL
        for (int p = 0; p < parts; ++p) sum[r][j] += left[p] * right[j][p];
      }
    }
  }
  SWITCHYARD_TILE_UNROLL
  for (int r = 0; r < Rows; ++r) {
    quad old;
    __builtin_memcpy(&old, c + r * c_stride, sizeof old);
    old += sums_of(sum[r]);
    __builtin_memcpy(c + r * c_stride, &old, sizeof old);
  }
}

/// `tile` with the number of rows known when it runs: 1 to `Rows`.
template <class Element, int Rows>
SWITCHYARD_TILE_TARGET void tile_of_height(int height, Element const* const* a, Element const* b, Element const* next,
                                           std::int64_t b_stride, std::int64_t depth, float* c, std::int64_t c_stride) {
  if constexpr (Rows > 1) {
    if (height < Rows) return tile_of_height<Element, Rows - 1>(height, a, b, next, b_stride, depth, c, c_stride);
  }
  tile<Element, Rows>(a, b, next, b_stride, depth, c, c_stride);
}

/// c[r][j] += a[r] . b[j] for any number of rows and columns; `c` holds `c_stride` floats a row.
///
/// A tile of rows stays in the first-level cache while all columns pass by. The order of the terms of one dot
/// product depends on depth alone.
template <class Element>
SWITCHYARD_TILE_TARGET void multiply_add(Element const* const* a, int rows, Element const* b, std::int64_t b_stride,
                                         int columns, std::int64_t depth, float* c, std::int64_t c_stride) {
  int const whole_columns = columns / 4 * 4;
  for (int r = 0; r < rows; r += SWITCHYARD_TILE_ROWS) {
    int const height = rows - r < SWITCHYARD_TILE_ROWS ? rows - r : SWITCHYARD_TILE_ROWS;
    for (int j = 0; j < whole_columns; j += 4) {
      Element const* const right = b + j * b_stride;
      float* const to = c + r * c_stride + j;
      Element const* const next = right + (j + 4 < whole_columns ? 4 * b_stride : depth - j * b_stride);
      tile_of_height<Element, SWITCHYARD_TILE_ROWS>(height, a + r, right, next, b_stride, depth, to, c_stride);
    }
  }
  // What no tile covers: up to three last columns, and the depth that does not fill a vector.
  std::int64_t const whole_depth = depth / (lanes * stored<Element>::parts) * (lanes * stored<Element>::parts);
  for (int r = 0; r < rows; ++r) {
    for (int j = 0; j < columns; ++j) {
      float sum = 0.0f;
      for (std::int64_t k = j < whole_columns ? whole_depth : 0; k < depth; ++k) {
        sum += static_cast<float>(a[r][k]) * static_cast<float>(b[j * b_stride + k]);
      }
      c[r * c_stride + j] += sum;
    }
  }
}

/// A panel is the tokens of a product side by side: `panel_width` of them or, for the last few, `lanes`.
inline constexpr int panel_width = 2 * lanes;
inline constexpr int panel_features = SWITCHYARD_PANEL_FEATURES;

/// Where element k of a row stands in a panel, and a weight among those that `widen_rows` makes. Loads of two-byte
/// elements come as even and odd ones, so panels have them in that order, too; `depth` is that of the whole product.
template <class Element>
inline std::int64_t place_in_depth(std::int64_t k, std::int64_t depth) {
  constexpr int parts = stored<Element>::parts, step = lanes * parts;
  if (parts == 1 || k >= depth / step * step) return k;
  return k / step * step + k % parts * lanes + k % step / parts;
}

/// panel[place_in_depth(k) * width + i] = element k of row i, as a float; rows past the last are zero.
template <class Element>
SWITCHYARD_TILE_TARGET void pack_panel(Element const* const* rows, int row_count, int width, std::int64_t depth,
                                       float* panel) {
  constexpr int piece = 64;  // a multiple of two vectors
  for (std::int64_t k = 0; k < depth; k += piece) {
    int const length = depth - k < piece ? static_cast<int>(depth - k) : piece;
    float* to[piece];
    for (int j = 0; j < length; ++j) to[j] = panel + place_in_depth<Element>(k + j, depth) * width;
    for (int i = 0; i < row_count; ++i) {
      Element const* const from = rows[i] + k;
      for (int j = 0; j < length; ++j) to[j][i] = static_cast<float>(from[j]);
    }
    for (int j = 0; j < length; ++j) {
      for (int i = row_count; i < width; ++i) to[j][i] = 0.0f;
    }
  }
}

/// panel[place_in_depth(k)] = what the rows of a panel have for element k.
template <class Element>
SWITCHYARD_TILE_TARGET void put_values(float const* values, int width, std::int64_t k, std::int64_t depth,
                                       float* panel) {
  float* const to = panel + place_in_depth<Element>(k, depth) * width;
  for (int i = 0; i < width; ++i) to[i] = values[i];
}

/// A piece of the weights of some features as floats, in the order of panels, `panel_pitch` apart; features past the last
/// are zero. Pieces before the last of a row are `panel_depth` long, which is a multiple of any step.
template <class Element>
SWITCHYARD_TILE_TARGET ready_weights widen_rows(Element const* from, std::int64_t row_stride,
                                                std::int64_t column_stride, int features, int depth, float* memory) {
  float* to = memory;
  using source = stored<Element>;
  constexpr int step = lanes * source::parts;
  int const by_steps = depth / step * step;
  for (int f = 0; f < panel_features; ++f, to += panel_pitch) {
    Element const* const row = from + f * row_stride;
    if (f >= features) {
      for (int k = 0; k < depth; ++k) to[k] = 0.0f;
    } else if (column_stride != 1) {
      for (int k = 0; k < depth; ++k) {
        to[place_in_depth<Element>(k, depth)] = static_cast<float>(row[k * column_stride]);
      }
    } else {
      for (int k = 0; k < by_steps; k += step) {
        floats part[source::parts];
        source::load(row + k, part);
        for (int p = 0; p < source::parts; ++p) __builtin_memcpy(to + k + p * lanes, &part[p], sizeof(floats));
      }
      for (int k = by_steps; k < depth; ++k) to[k] = static_cast<float>(row[k]);
    }
  }
  return {memory, panel_pitch * static_cast<std::int64_t>(sizeof(float))};
}

/// sums[f][i] (+)= sum over depth of weights[f][k] * panel[k][i], for all features and `Vectors` vectors of tokens. The
/// rows `fetched` are brought to the second-level cache meanwhile.
template <int Vectors>
SWITCHYARD_TILE_TARGET void multiply_panel(ready_weights const& ready, float const* panel, int depth, bool first,
                                           float* sums, fetched_rows const& fetched) {
  float const* const weights = static_cast<float const*>(ready.first);
  constexpr int width = Vectors * lanes, piece = 16;
  floats sum[panel_features][Vectors] = {};
  for (int begin = 0; begin < depth; begin += piece) {
    int const end = depth - begin < piece ? depth : begin + piece;
    for (int row = 0; row < fetched.rows; ++row) {
      __builtin_prefetch(fetched.first + row * fetched.stride + begin * fetched.element_bytes, 0, 2);
    }
    for (int k = begin; k < end; ++k) {
      floats right[Vectors];
      SWITCHYARD_TILE_UNROLL
      for (int v = 0; v < Vectors; ++v) {
        __builtin_memcpy(&right[v], panel + k * width + v * lanes, sizeof(floats));
        __builtin_prefetch(panel + (k + 16) * width + v * lanes);  // panels come from the second-level cache
      }
      SWITCHYARD_TILE_UNROLL
      for (int f = 0; f < panel_features; ++f) {
        SWITCHYARD_TILE_UNROLL
        for (int v = 0; v < Vectors; ++v) sum[f][v] += right[v] * weights[f * panel_pitch + k];
      }
    }
  }
  SWITCHYARD_TILE_UNROLL
  for (int f = 0; f < panel_features; ++f) {
    SWITCHYARD_TILE_UNROLL
    for (int v = 0; v < Vectors; ++v) {
      float* const to = sums + f * width + v * lanes;
      floats old = {};
      if (!first) __builtin_memcpy(&old, to, sizeof old);
      old += sum[f][v];
      __builtin_memcpy(to, &old, sizeof old);
    }
  }
}

/// to[i] = activation of a gate and an up feature of `width` rows, biases added first; `weights`, where it is not null,
/// multiplies the products of each row.
template <class Expert>
SWITCHYARD_TILE_TARGET void activate(float const* gate, float const* up, float const* weights, float gate_bias,
                                     float up_bias, int width, float* to) {
  using activation = typename Expert::activation;
  for (int i = 0; i < width; ++i) {
    float const weight = weights == nullptr ? 1.0f : weights[i];
    if constexpr (Expert::traits.gated) {
      to[i] = activation::apply(weight * gate[i] + gate_bias, weight * up[i] + up_bias);
    } else {
      to[i] = activation::apply(weight * up[i] + up_bias);
    }
  }
}
