// The end of tile.inl, once per instruction set: weights that are a matrix and a masked change.

#if defined(SWITCHYARD_TILE_EXPANDS)

/// 32 elements of two bytes: the first ones at `from` where the mask has bits, in order, and zeros elsewhere. Reads 64 bytes.
/// `Words` says that the processor does this in one step.
template <bool Words>
SWITCHYARD_TILE_TARGET inline words expand_words(std::uint32_t mask, void const* from) {
  words result;
  if constexpr (Words) {
    words all;
    __builtin_memcpy(&all, from, sizeof all);
    asm("vpexpandw %1, %0%{%2%}%{z%}" : "=v"(result) : "v"(all), "Yk"(mask));
  } else {
    typedef std::uint16_t shorts __attribute__((vector_size(32)));
    int const low_count = __builtin_popcount(mask & 0xffffu);
    words low = widen_words(from), high = widen_words(static_cast<std::uint16_t const*>(from) + low_count);
    asm("vpexpandd %0, %0%{%1%}%{z%}" : "+v"(low) : "Yk"(static_cast<std::uint16_t>(mask)));
    asm("vpexpandd %0, %0%{%1%}%{z%}" : "+v"(high) : "Yk"(static_cast<std::uint16_t>(mask >> 16)));
    shorts const both[2] = {__builtin_convertvector(low, shorts), __builtin_convertvector(high, shorts)};
    __builtin_memcpy(&result, both, sizeof result);
  }
  return result;
}

/// 32 elements as floats, as `stored<Element>` orders them.
template <class Element>
SWITCHYARD_TILE_TARGET inline void load_word(Element const* from, floats (&to)[2]) {
  SWITCHYARD_TILE_UNROLL
  for (int p = 0; p < 2; ++p) to[p] = stored<Element>::load(from + (stored<Element>::parts == 1 ? p * lanes : 0), p);
}
SWITCHYARD_TILE_TARGET inline void load_word(bfloat16 const* from, floats (&to)[2]) {
  words pairs;
  __builtin_memcpy(&pairs, from, sizeof pairs);
  SWITCHYARD_TILE_LOADED(pairs);
  to[0] = reinterpret_cast<floats>(pairs << 16);
  to[1] = reinterpret_cast<floats>(pairs & 0xffff0000u);
}

/// What a masked change has for 32 columns, in the same order: zeros where the mask has no bit. Reads 64 bytes from `values` on, or 64 from
/// those of the second half on.
template <bool Words>
SWITCHYARD_TILE_TARGET inline void spread_word(std::uint32_t mask, bfloat16 const* values, floats (&to)[2]) {
  words const change = expand_words<Words>(mask, values);
  to[0] = reinterpret_cast<floats>(change << 16);
  to[1] = reinterpret_cast<floats>(change & 0xffff0000u);
}
template <bool Words>
SWITCHYARD_TILE_TARGET inline void spread_word(std::uint32_t mask, half const* values, floats (&to)[2]) {
  words const change = expand_words<Words>(mask, values);
  half spread[2 * lanes];
  __builtin_memcpy(static_cast<void*>(spread), &change, sizeof change);
  load_word(spread, to);
}
template <bool>
SWITCHYARD_TILE_TARGET inline void spread_word(std::uint32_t mask, float const* values, floats (&to)[2]) {
  to[0] = load_floats(values);
  to[1] = load_floats(values + __builtin_popcount(mask & 0xffffu));
  asm("vexpandps %0, %0%{%1%}%{z%}" : "+v"(to[0]) : "Yk"(static_cast<std::uint16_t>(mask)));
  asm("vexpandps %0, %0%{%1%}%{z%}" : "+v"(to[1]) : "Yk"(static_cast<std::uint16_t>(mask >> 16)));
}
/// 32 restored weights.
template <bool Words, class Element>
SWITCHYARD_TILE_TARGET inline void restore_word(Element const* base, std::uint32_t mask, Element const* values,
                                                floats (&to)[2]) {
  floats change[2];
  load_word(base, to);
  spread_word<Words>(mask, values, change);
  to[0] += change[0];
  to[1] += change[1];
}

/// The weights of one feature, as `multiply_masked_group` reads them.
template <class Element>
struct masked_stream {
  Element const* base;
  std::uint32_t const* masks;
  Element const* values;  ///< those that come next
};

/// products[r * Streams + s] = row r . the feature of stream s over `columns` columns, a multiple of 32, for a group of `Rows` rows; of the
/// restored weights, or of their change alone.
template <bool Words, bool Restored, class Element, int Rows, int Streams>
SWITCHYARD_TILE_TARGET void multiply_masked_group(float const* rows, masked_stream<Element> const (&streams)[Streams],
                                                  std::int64_t columns, float* products) {
  constexpr int values_ahead = 1024 / static_cast<int>(sizeof(Element));
  floats sums[Rows * Streams] = {};
  Element const *base[Streams], *values[Streams];
  std::uint32_t const* masks[Streams];
  SWITCHYARD_TILE_UNROLL
  for (int s = 0; s < Streams; ++s) {
    base[s] = streams[s].base;
    masks[s] = streams[s].masks;
    values[s] = streams[s].values;
  }
  for (std::int64_t word = 0; word < columns / 32; ++word, rows += 32 * Rows) {
    floats right[Streams][2];
    SWITCHYARD_TILE_UNROLL
    for (int s = 0; s < Streams; ++s) {
      std::uint32_t const mask = masks[s][word];
      if constexpr (Restored) restore_word<Words>(base[s] + 32 * word, mask, values[s], right[s]);
      if constexpr (!Restored) spread_word<Words>(mask, values[s], right[s]);
      __builtin_prefetch(values[s] + values_ahead);
      values[s] += __builtin_popcount(mask);
    }
    SWITCHYARD_TILE_UNROLL
    for (int p = 0; p < 2; ++p) {
      SWITCHYARD_TILE_UNROLL
      for (int r = 0; r < Rows; ++r) {
        floats left;
        __builtin_memcpy(&left, rows + (p * Rows + r) * lanes, sizeof(floats));
        SWITCHYARD_TILE_LOADED(left);
        SWITCHYARD_TILE_UNROLL
        for (int s = 0; s < Streams; ++s) sums[r * Streams + s] += left * right[s][p];
      }
    }
  }
  put_sums(sums, products);
}

/// Features that are multiplied together beside so many rows: as many as have their sums and weights in registers.
constexpr int masked_features_beside(int rows) { return rows <= 5 ? 4 : 3; }

/// to[r][f] = row r . feature f for groups of `Rows` rows and of one less, and the features of a tile, whose depth is a multiple of 32; or
/// to[r][f] += row r . what the change has for feature f.
template <bool Words, bool Restored, class Operand, int Rows = most_rows>
SWITCHYARD_TILE_TARGET void multiply_rows_by_masked(float const* rows, int row_count, std::int64_t depth,
                                                    feature_tile<Operand> const& tile, float* to, std::int64_t stride) {
  int const groups = groups_of_rows(row_count);
  if constexpr (Rows > 1) {
    if (row_count <= groups * (Rows - 1)) {
      return multiply_rows_by_masked<Words, Restored, Operand, Rows - 1>(rows, row_count, depth, tile, to, stride);
    }
  }
  using element = typename Operand::element;
  constexpr int streams = masked_features_beside(Rows);
  Operand const& weights = *tile.weights;
  int const each = (tile.features + streams - 1) / streams;
  for (int i = 0; i < each; ++i) {
    for (int g = 0; g < groups; ++g) {
      masked_stream<element> now[streams];
      for (int s = 0; s < streams; ++s) {
        int const f = tile.first + (s * each + i < tile.features ? s * each + i : tile.features - 1);
        now[s] = {weights.base.at(0, f, 0), weights.change.masks_of(tile.expert, f),
                  weights.change.values_from(tile.expert, f, 0)};
      }
      row_group const group = group_of_rows(row_count, g);
      float const* const from = rows + group.first * row_floats(depth);
      float products[Rows * streams + 3] = {};
      if (group.rows == Rows) {
        multiply_masked_group<Words, Restored, element, Rows, streams>(from, now, depth, products);
      } else {
        constexpr int fewer = Rows > 1 ? Rows - 1 : 1;
        multiply_masked_group<Words, Restored, element, fewer, streams>(from, now, depth, products);
      }
      for (int s = 0; s < streams && s * each + i < tile.features; ++s) {
        float* const column = to + group.first * stride + s * each + i;
        // There are no more, but the compiler does not know that.
        for (int r = 0; r < group.rows && r < Rows; ++r) {
          float const product = products[r * streams + s];
          column[r * stride] = Restored ? product : column[r * stride] + product;
        }
      }
    }
  }
}

/// to[stored<Element>'s position of k] = base[k] + the change of column k, for `count` columns from a multiple of 512 on.
template <bool Words, class Element>
SWITCHYARD_TILE_TARGET void restore_masked_row(Element const* base, std::uint32_t const* masks, Element const* values,
                                               int count, float* to) {
  constexpr int values_ahead = 1024 / static_cast<int>(sizeof(Element));
  for (; count >= 32; count -= 32, base += 32, to += 32) {
    std::uint32_t const mask = *masks++;
    floats both[2];
    restore_word<Words>(base, mask, values, both);
    __builtin_prefetch(values + values_ahead);
    SWITCHYARD_TILE_UNROLL
    for (int p = 0; p < 2; ++p) __builtin_memcpy(to + p * lanes, &both[p], sizeof(floats));
    values += __builtin_popcount(mask);
  }
  for (int k = 0; k < count; ++k) {
    to[k] = static_cast<float>(base[k]);
    if ((*masks >> k & 1u) != 0) to[k] += static_cast<float>(*values++);
  }
}

template <class Element>
struct restored<base_plus<weight_view<Element>, masked_change<Element>>> {
  using operand = base_plus<weight_view<Element>, masked_change<Element>>;
  using order = Element;

  SWITCHYARD_TILE_TARGET static void read(operand const& weights, int expert, int row, std::int64_t first, int count,
                                          float* to) {
    int const column = static_cast<int>(first);
    if (weights.base.column_stride != 1) {
      float in_order[panel_depth];
      restore_row(weights, expert, row, first, count, in_order);
      for (int k = 0; k < count; ++k) to[depth_position<Element>(k, count)] = in_order[k];
      return;
    }
    Element const* const base = weights.base.at(0, row, column);
    std::uint32_t const* const masks = weights.change.masks_of(expert, row) + column / 32;
    Element const* const values = weights.change.values_from(expert, row, column);
    if (sizeof(Element) == 2 && expands_words()) return restore_masked_row<true>(base, masks, values, count, to);
    restore_masked_row<false>(base, masks, values, count, to);
  }

  SWITCHYARD_TILE_TARGET static bool multiply(float const* rows, int row_count, depth_slice const& piece,
                                              feature_tile<operand> const& tile, feature_tile<operand> const&,
                                              float* to, std::int64_t stride) {
    if (piece.depth % 32 != 0 || tile.weights->base.column_stride != 1) return false;
    multiply_rows<true>(rows, row_count, piece.depth, tile, to, stride);
    return true;
  }
  static constexpr bool multiplies_changes = true;
  SWITCHYARD_TILE_TARGET static void add_change(float const* rows, int row_count, std::int64_t depth,
                                                feature_tile<operand> const& tile, float* to, std::int64_t stride) {
    multiply_rows<false>(rows, row_count, depth, tile, to, stride);
  }

 private:
  template <bool Restored>
  SWITCHYARD_TILE_TARGET static void multiply_rows(float const* rows, int row_count, std::int64_t depth,
                                                   feature_tile<operand> const& tile, float* to, std::int64_t stride) {
    if (sizeof(Element) == 2 && expands_words()) {
      multiply_rows_by_masked<true, Restored>(rows, row_count, depth, tile, to, stride);
    } else {
      multiply_rows_by_masked<false, Restored>(rows, row_count, depth, tile, to, stride);
    }
  }
};

#elif defined(SWITCHYARD_TILE_HALF)

/// Eight elements from `from` on, in their order. Reads a vector of them.
SWITCHYARD_TILE_TARGET inline floats load_in_order(float const* from) { return load_floats(from); }
template <class Element>
SWITCHYARD_TILE_TARGET inline floats load_in_order(Element const* from) {
  return stored<summed_as_float<Element>>::load(reinterpret_cast<summed_as_float<Element> const*>(from), 0);
}

/// to[k] = base[k] + the change of column k, for `count` columns from a multiple of 512 on. Eight values at a time are put where a byte of
/// the mask has bits, by a table.
template <class Element>
SWITCHYARD_TILE_TARGET void restore_masked_row(Element const* base, std::uint32_t const* masks, Element const* values,
                                               int count, float* to) {
  typedef std::uint8_t bytes __attribute__((vector_size(8)));
  words bits;
  for (int lane = 0; lane < lanes; ++lane) bits[lane] = 1u << lane;
  int k = 0;
  for (; k + lanes <= count; k += lanes) {
    std::uint32_t const mask = masks[k / 32] >> k % 32 & 0xffu;
    bytes places;
    __builtin_memcpy(&places, &places_of_values.of_byte[mask], sizeof places);
    words const from = __builtin_convertvector(places, words);
    floats const next = load_in_order(values);
    floats spread;
    asm("vpermps %1, %2, %0" : "=x"(spread) : "x"(next), "x"(from));
    words const kept = reinterpret_cast<words>(((words{} + mask) & bits) != 0) & reinterpret_cast<words>(spread);
    floats const sum = load_in_order(base + k) + reinterpret_cast<floats>(kept);
    __builtin_memcpy(to + k, &sum, sizeof sum);
    if (k % 32 == 0) __builtin_prefetch(values + 1024 / sizeof(Element));
    values += __builtin_popcount(mask);
  }
  for (; k < count; ++k) {
    to[k] = static_cast<float>(base[k]);
    if ((masks[k / 32] >> k % 32 & 1u) != 0) to[k] += static_cast<float>(*values++);
  }
}

template <class Element>
struct restored<base_plus<weight_view<Element>, masked_change<Element>>> {
  using operand = base_plus<weight_view<Element>, masked_change<Element>>;
  using order = float;

  SWITCHYARD_TILE_TARGET static void read(operand const& weights, int expert, int row, std::int64_t first, int count,
                                          float* to) {
    int const column = static_cast<int>(first);
    if (weights.base.column_stride != 1) return restore_row(weights, expert, row, first, count, to);
    restore_masked_row(weights.base.at(0, row, column), weights.change.masks_of(expert, row) + column / 32,
                       weights.change.values_from(expert, row, column), count, to);
  }
  SWITCHYARD_TILE_TARGET static bool multiply(float const*, int, depth_slice const&, feature_tile<operand> const&,
                                              feature_tile<operand> const&, float*, std::int64_t) {
    return false;
  }
  static constexpr bool multiplies_changes = false;
};

#endif
