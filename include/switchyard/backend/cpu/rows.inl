// The end of tile.inl, once per instruction set: sums and products of single rows that stand anywhere.

/// sum[depth_position(k)] += weights[r] * rows[r][k] for each row after the other; meanwhile rows[r + rows_ahead] is fetched.
template <int Count, class Element>
SWITCHYARD_TILE_TARGET void add_some_rows(Element const* const* rows, float const* weights, int columns, float* sum) {
  using source = stored<Element>;
  constexpr int step = lanes * source::parts;
  int const by_steps = columns / step * step;
  for (int k = 0; k < by_steps; k += step) {
    SWITCHYARD_TILE_UNROLL
    for (int r = 0; r < Count; ++r) __builtin_prefetch(rows[r + rows_ahead] + k);
    floats all[source::parts];
    SWITCHYARD_TILE_UNROLL
    for (int p = 0; p < source::parts; ++p) __builtin_memcpy(&all[p], sum + k + p * lanes, sizeof(floats));
    SWITCHYARD_TILE_UNROLL
    for (int r = 0; r < Count; ++r) {
      SWITCHYARD_TILE_UNROLL
      for (int p = 0; p < source::parts; ++p) all[p] += source::load(rows[r] + k, p) * weights[r];
    }
    SWITCHYARD_TILE_UNROLL
    for (int p = 0; p < source::parts; ++p) __builtin_memcpy(sum + k + p * lanes, &all[p], sizeof(floats));
  }
  for (int k = by_steps; k < columns; ++k) {
    for (int r = 0; r < Count; ++r) sum[k] += static_cast<float>(rows[r][k]) * weights[r];
  }
}

/// The same for any number of rows; `rows` has `rows_ahead` more, which come next.
///
/// Eight rows ahead read at 1.0 to 1.1 times the rate of four. Whole rows that are fetched one after the other instead of all at the same
/// column were up to 1.3 times slower.
template <class Element>
SWITCHYARD_TILE_TARGET void add_rows(Element const* const* rows, float const* weights, int count, int columns,
                                     float* sum) {
  constexpr int together = 4;
  int r = 0;
  for (; r + together <= count; r += together) add_some_rows<together>(rows + r, weights + r, columns, sum);
  for (; r < count; ++r) add_some_rows<1>(rows + r, weights + r, columns, sum);
}

/// row . x, where x[depth_position(k)] is element k.
template <class Element>
SWITCHYARD_TILE_TARGET float dot_row(Element const* row, Element const* next, float const* x, int columns) {
  using source = stored<Element>;
  constexpr int step = lanes * source::parts;
  int const by_steps = columns / step * step;
  floats sums[2] = {};
  for (int k = 0; k < by_steps; k += step) {
    __builtin_prefetch(next + k);
    SWITCHYARD_TILE_UNROLL
    for (int p = 0; p < source::parts; ++p) {
      floats right;
      __builtin_memcpy(&right, x + k + p * lanes, sizeof right);
      sums[source::parts == 2 ? p : k / step % 2] += source::load(row + k, p) * right;
    }
  }
  floats const both = sums[0] + sums[1];
  float total = 0.0f;
  for (int i = 0; i < lanes; ++i) total += both[i];
  for (int k = by_steps; k < columns; ++k) total += static_cast<float>(row[k]) * x[k];
  return total;
}

/// to[k] = what stands at depth_position(k), as an element.
template <class Element>
SWITCHYARD_TILE_TARGET void narrow_row(float const* from, int columns, Element* to) {
  using source = stored<Element>;
  constexpr int parts = source::in_order ? 1 : source::parts, step = lanes * source::parts;
  int const by_steps = columns / step * step;
  for (int k = 0; k < by_steps; k += step) {
    Element row[step];
    for (int i = 0; i < step; ++i) row[i] = Element(from[k + i % parts * (step / parts) + i / parts]);
    __builtin_memcpy(static_cast<void*>(to + k), row, sizeof row);
  }
  for (int k = by_steps; k < columns; ++k) to[k] = Element(from[k]);
}
template <>
SWITCHYARD_TILE_TARGET inline void narrow_row<bfloat16>(float const* from, int columns, bfloat16* to) {
  constexpr int step = 2 * lanes;
  int const by_steps = columns / step * step;
  for (int k = 0; k < by_steps; k += step) {
    words half[2];
    for (int p = 0; p < 2; ++p) {
      words bits;
      __builtin_memcpy(&bits, from + k + p * lanes, sizeof bits);
      words const is_nan = reinterpret_cast<words>((bits & 0x7fffffffu) > 0x7f800000u);
      half[p] = (is_nan & (bits | 0x00400000u)) |
                (~is_nan & (bits + 0x7fffu + (bits >> 16 & 1u)));  // to the nearest, ties to even
    }
    words const both = half[0] >> 16 | (half[1] & 0xffff0000u);
    __builtin_memcpy(static_cast<void*>(to + k), &both, sizeof both);
  }
  for (int k = by_steps; k < columns; ++k) to[k] = bfloat16(from[k]);
}

/// to[k] *= what stands at depth_position(k).
template <class Element>
SWITCHYARD_TILE_TARGET void multiply_in_order(float const* from, int columns, float* to) {
  using source = stored<Element>;
  constexpr int parts = source::in_order ? 1 : source::parts, step = lanes * source::parts;
  int const by_steps = columns / step * step;
  for (int k = 0; k < by_steps; k += step) {
    for (int i = 0; i < step; ++i) to[k + i] *= from[k + i % parts * (step / parts) + i / parts];
  }
  for (int k = by_steps; k < columns; ++k) to[k] *= from[k];
}

/// to[k] += what stands at depth_position(k).
template <class Element>
SWITCHYARD_TILE_TARGET void add_in_order(float const* from, int columns, float* to) {
  using source = stored<Element>;
  constexpr int parts = source::in_order ? 1 : source::parts, step = lanes * source::parts;
  int const by_steps = columns / step * step;
  for (int k = 0; k < by_steps; k += step) {
    for (int i = 0; i < step; ++i) to[k + i] += from[k + i % parts * (step / parts) + i / parts];
  }
  for (int k = by_steps; k < columns; ++k) to[k] += from[k];
}

/// The next elements of a row that are not zero, at most `most`, from depth position `from` on, which moves on: how many there are, their
/// numbers, and the values.
template <class Element>
SWITCHYARD_TILE_TARGET int next_units(row_among_others const& of, std::int64_t& from, int most, std::int32_t* units,
                                      float* values) {
  constexpr int step = lanes * stored<Element>::parts;
  row_group group = {0, of.count};
  if (!of.in_panel) {
    group = group_of_rows(of.count, 0);
    for (int g = 1; of.row >= group.first + group.rows; ++g) group = group_of_rows(of.count, g);
  }
  // Element `lane` of the vector at a depth position stands at position * group.rows + row + lane * next.
  float const* const begin = of.first + group.first * row_floats(of.depth);
  int const r = of.row - group.first, next = of.in_panel ? group.rows : 1, row = of.in_panel ? r : r * lanes;
  std::int64_t const by_steps = of.depth / step * step;
  int count = 0;
  for (; from < by_steps && count + lanes <= most; from += lanes) {
    float const* const vector = begin + from * group.rows + row;
    if (!of.in_panel) {
      integers const is_there = reinterpret_cast<integers>(load_floats(vector) != 0.0f);
      std::int32_t any = 0;
      for (int i = 0; i < lanes; ++i) any |= is_there[i];
      if (any == 0) continue;
    }
    for (int i = 0; i < lanes; ++i) {
      float const value = vector[i * next];
      if (value == 0.0f) continue;
      units[count] = static_cast<std::int32_t>(element_at<Element>(from + i, of.depth));
      values[count++] = value;
    }
  }
  for (; from >= by_steps && from < of.depth && count < most; ++from) {
    float const value = begin[from * group.rows + r];
    if (value == 0.0f) continue;
    units[count] = static_cast<std::int32_t>(from);
    values[count++] = value;
  }
  return count;
}
