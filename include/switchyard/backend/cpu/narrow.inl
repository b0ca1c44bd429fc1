// The end of tile.inl, once per instruction set: products of experts with few units, whose weights lie feature by feature.

/// A vector of elements in their order, as floats.
template <class Element>
struct stored_in_order {
  SWITCHYARD_TILE_TARGET static floats load(Element const* from) {
    return stored<summed_as_float<Element>>::load(reinterpret_cast<summed_as_float<Element> const*>(from), 0);
  }
};
#if defined(SWITCHYARD_TILE_HALF)
// gcc makes half a vector at a time of what can be one instruction.
template <>
struct stored_in_order<bfloat16> {
  SWITCHYARD_TILE_TARGET static floats load(bfloat16 const* from) {
    typedef std::uint16_t shorts __attribute__((vector_size(SWITCHYARD_TILE_BYTES / 2), may_alias, aligned(2)));
    words elements;
    asm("vpmovzxwd %1, %0" : "=v"(elements) : "m"(*reinterpret_cast<shorts const*>(from)));
    return reinterpret_cast<floats>(elements << 16);
  }
};
#endif
template <>
struct stored_in_order<float> {
  SWITCHYARD_TILE_TARGET static floats load(float const* from) { return load_floats(from); }
};

/// to[k] = element k, as a float.
template <class Element>
SWITCHYARD_TILE_TARGET void widen_in_order(Element const* from, int columns, float* to) {
  int const by_vectors = columns / lanes * lanes;
  for (int k = 0; k < by_vectors; k += lanes) {
    floats const values = stored_in_order<Element>::load(from + k);
    __builtin_memcpy(to + k, &values, sizeof values);
  }
  for (int k = by_vectors; k < columns; ++k) to[k] = static_cast<float>(from[k]);
}

/// Output features come in multiples of a vector; two vectors of them are multiplied together where there are as many.
inline constexpr int narrow_step = lanes;
/// Rows beside them: their sums, two vectors of weights and one number of a row fit the registers, and pointers to rows fit, too.
constexpr int narrow_rows(int vectors) { return lanes < 16 && vectors == 2 ? 4 : 8; }

/// sums[r][first + f] += sum over depth of rows[r][k] * weights[k * stride + f], for the features f of some vectors. The order of the terms
/// of a sum is that of k, whatever stands beside it. What stands as `weights` do from `fetched` on is brought to the second-level cache meanwhile: to the first one it
/// came at two thirds of the rate.
template <class Element, int Rows, int Vectors>
SWITCHYARD_TILE_TARGET void add_narrow_group(float const* const* rows, int depth, Element const* weights,
                                             Element const* fetched, std::int64_t stride, float* const* sums,
                                             int first) {
  constexpr int line_elements = 64 / static_cast<int>(sizeof(Element));
  floats sum[Rows][Vectors];
  float const* row[Rows];
  SWITCHYARD_TILE_UNROLL
  for (int r = 0; r < Rows; ++r) {
    SWITCHYARD_TILE_UNROLL
    for (int v = 0; v < Vectors; ++v) sum[r][v] = load_floats(sums[r] + first + v * lanes);
    row[r] = rows[r];
  }
  for (int k = 0; k < depth; ++k, weights += stride, fetched += stride) {
    __builtin_prefetch(fetched, 0, 2);
    if constexpr (Vectors * lanes > line_elements) __builtin_prefetch(fetched + line_elements, 0, 2);
    floats right[Vectors];
    SWITCHYARD_TILE_UNROLL
    for (int v = 0; v < Vectors; ++v) right[v] = stored_in_order<Element>::load(weights + v * lanes);
    SWITCHYARD_TILE_UNROLL
    for (int r = 0; r < Rows; ++r) {
      float const value = row[r][k];
      SWITCHYARD_TILE_UNROLL
      for (int v = 0; v < Vectors; ++v) sum[r][v] += right[v] * value;
    }
  }
  SWITCHYARD_TILE_UNROLL
  for (int r = 0; r < Rows; ++r) {
    SWITCHYARD_TILE_UNROLL
    for (int v = 0; v < Vectors; ++v) __builtin_memcpy(sums[r] + first + v * lanes, &sum[r][v], sizeof(floats));
  }
}

/// The same for any number of rows, a piece of the depth.
template <class Element, int Vectors>
SWITCHYARD_TILE_TARGET void add_narrow_piece(float const* const* rows, int row_count, int begin, int depth,
                                             Element const* weights, Element const* fetched, std::int64_t stride,
                                             float* const* sums, int first) {
  constexpr int most = narrow_rows(Vectors);
  float const* row[most];
  int r = 0;
  auto const add = [&]<int Rows>(std::integral_constant<int, Rows>) SWITCHYARD_TILE_TARGET {
    for (int i = 0; i < Rows; ++i) row[i] = rows[r + i] + begin;
    add_narrow_group<Element, Rows, Vectors>(row, depth, weights, fetched, stride, sums + r, first);
    fetched = weights;  // what the first group fetches is there for the others
    r += Rows;
  };
  while (r + most <= row_count) add(std::integral_constant<int, most>{});
  if constexpr (most > 4) {
    if (row_count - r >= 4) add(std::integral_constant<int, 4>{});
  }
  if (row_count - r >= 2) add(std::integral_constant<int, 2>{});
  if (row_count > r) add(std::integral_constant<int, 1>{});
}

/// The same for a multiple of `narrow_step` of features. Few rows wait for the weights: those of a piece of the depth are read side by side,
/// in long streams of memory.
template <class Element>
SWITCHYARD_TILE_TARGET void add_narrow_products(float const* const* rows, int row_count, int depth,
                                                Element const* weights, Element const* fetched, std::int64_t stride,
                                                int features, float* const* sums) {
  constexpr int streams = 8;
  int const piece = row_count <= 8 && features > 2 * narrow_step ? streams : depth;
  for (int k = 0; k < depth; k += piece) {
    int const length = depth - k < piece ? depth - k : piece;
    Element const* const now = weights + k * stride;
    Element const* const ahead = k + piece < depth ? now + piece * stride : fetched;
    int f = 0;
    for (; f + 2 * narrow_step <= features; f += 2 * narrow_step) {
      add_narrow_piece<Element, 2>(rows, row_count, k, length, now + f, ahead + f, stride, sums, f);
    }
    if (f < features) add_narrow_piece<Element, 1>(rows, row_count, k, length, now + f, ahead + f, stride, sums, f);
  }
}
