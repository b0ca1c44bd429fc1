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

/// Output features that are multiplied together: two vectors.
inline constexpr int narrow_step = 2 * lanes;
/// Rows beside them: their sums, two vectors of weights and one number of a row fit the registers, and pointers to rows fit, too.
inline constexpr int narrow_rows = lanes < 16 ? 4 : 8;

/// sums[r][first + f] += sum over depth of rows[r][k] * weights[k * stride + f], for `narrow_step` features f. The order of the terms of a
/// sum is that of k, whatever stands beside it. What stands as `weights` do from `fetched` on is brought to the cache meanwhile.
template <class Element, int Rows>
SWITCHYARD_TILE_TARGET void add_narrow_group(float const* const* rows, int depth, Element const* weights,
                                             Element const* fetched, std::int64_t stride, float* const* sums,
                                             int first) {
  constexpr int line_elements = 64 / static_cast<int>(sizeof(Element));
  floats sum[Rows][2];
  SWITCHYARD_TILE_UNROLL
  for (int r = 0; r < Rows; ++r) {
    sum[r][0] = load_floats(sums[r] + first);
    sum[r][1] = load_floats(sums[r] + first + lanes);
  }
  float const* row[Rows];
  SWITCHYARD_TILE_UNROLL
  for (int r = 0; r < Rows; ++r) row[r] = rows[r];
  for (int k = 0; k < depth; ++k, weights += stride, fetched += stride) {
    __builtin_prefetch(fetched);
    if constexpr (narrow_step > line_elements) __builtin_prefetch(fetched + line_elements);
    floats const low = stored_in_order<Element>::load(weights), high = stored_in_order<Element>::load(weights + lanes);
    SWITCHYARD_TILE_UNROLL
    for (int r = 0; r < Rows; ++r) {
      float const value = row[r][k];
      sum[r][0] += low * value;
      sum[r][1] += high * value;
    }
  }
  SWITCHYARD_TILE_UNROLL
  for (int r = 0; r < Rows; ++r) {
    __builtin_memcpy(sums[r] + first, &sum[r][0], sizeof(floats));
    __builtin_memcpy(sums[r] + first + lanes, &sum[r][1], sizeof(floats));
  }
}

/// The same for any number of rows and a multiple of `narrow_step` of features. Few rows wait for the weights: those of a piece of the depth
/// are read side by side, in long streams of memory.
template <class Element>
SWITCHYARD_TILE_TARGET void add_narrow_products(float const* const* rows, int row_count, int depth,
                                                Element const* weights, Element const* fetched, std::int64_t stride,
                                                int features, float* const* sums) {
  constexpr int streams = 8;
  int const piece = row_count <= 8 && features > narrow_step ? streams : depth;
  for (int k = 0; k < depth; k += piece) {
    int const length = depth - k < piece ? depth - k : piece;
    float const* row[narrow_rows];
    for (int f = 0; f < features; f += narrow_step) {
      Element const* const now = weights + k * stride + f;
      // What the first group fetches is there for the others.
      Element const* ahead = k + piece < depth ? now + piece * stride : fetched + f;
      int r = 0;
      auto const add = [&]<int Rows>(std::integral_constant<int, Rows>) SWITCHYARD_TILE_TARGET {
        for (int i = 0; i < Rows; ++i) row[i] = rows[r + i] + k;
        add_narrow_group<Element, Rows>(row, length, now, ahead, stride, sums + r, f);
        ahead = now;
        r += Rows;
      };
      while (r + narrow_rows <= row_count) add(std::integral_constant<int, narrow_rows>{});
      if constexpr (narrow_rows > 4) {
        if (row_count - r >= 4) add(std::integral_constant<int, 4>{});
      }
      if (row_count - r >= 2) add(std::integral_constant<int, 2>{});
      if (row_count > r) add(std::integral_constant<int, 1>{});
    }
  }
}
