// Included at the end of tile.inl, once per instruction set: half scores of product keys, and the choice by them, without sorting and
// almost without branches: values are found by bisection, which counts how many are no less than a bound, and put in order by counting what
// precedes each.

/// Tokens and keys that are multiplied together: their sums, a vector of each key and one of a token fit the registers.
inline constexpr int scored_rows = 4, scored_keys = features_beside(scored_rows);

/// Puts tokens side by side in groups of `scored_rows`, vectors of the tokens of a group taking turns.
template <class Element>
SWITCHYARD_TILE_TARGET void group_scored_rows(Element const* const* rows, int row_count, int depth, float* to) {
  int const by_vectors = depth / lanes * lanes;
  for (int r = 0; r < row_count; ++r) {
    int const first = r / scored_rows * scored_rows,
              beside = row_count - first < scored_rows ? row_count - first : scored_rows;
    Element const* const from = rows[r];
    float* const group = to + first * depth;
    for (int k = 0; k < by_vectors; k += lanes) {
      float* const vector = group + k * beside + (r - first) * lanes;
      for (int i = 0; i < lanes; ++i) vector[i] = static_cast<float>(from[k + i]);
    }
    for (int k = by_vectors; k < depth; ++k) group[k * beside + (r - first)] = static_cast<float>(from[k]);
  }
}

/// to[r][f] (+)= row r . key f for one group of rows and `keys` up to `scored_keys` keys, which stand `stride` apart. What is multiplied
/// next is fetched meanwhile.
template <int Rows>
SWITCHYARD_TILE_TARGET void score_group(float const* rows, float const* weights, float const* next, std::int64_t stride,
                                        int keys, int depth, bool first, float* to, std::int64_t to_stride) {
  int const by_vectors = depth / lanes * lanes;
  float const* key[scored_keys];
  SWITCHYARD_TILE_UNROLL
  for (int s = 0; s < scored_keys; ++s) key[s] = weights + (s < keys ? s : 0) * stride;
  std::int64_t const ahead = next - weights;
  floats sum[Rows][scored_keys] = {};
  for (int k = 0; k < by_vectors; k += lanes, rows += lanes * Rows) {
    floats right[scored_keys];
    SWITCHYARD_TILE_UNROLL
    for (int s = 0; s < scored_keys; ++s) {
      __builtin_prefetch(key[s] + ahead + k);
      __builtin_memcpy(&right[s], key[s] + k, sizeof(floats));
    }
    SWITCHYARD_TILE_UNROLL
    for (int r = 0; r < Rows; ++r) {
      floats left;
      __builtin_memcpy(&left, rows + r * lanes, sizeof(floats));
      SWITCHYARD_TILE_LOADED(left);
      SWITCHYARD_TILE_UNROLL
      for (int s = 0; s < scored_keys; ++s) sum[r][s] += left * right[s];
    }
  }
  constexpr int count = Rows * scored_keys;
  float product[count + 3];
  SWITCHYARD_TILE_UNROLL
  for (int i = 0; i < count; i += 4) {
    floats four[4];
    SWITCHYARD_TILE_UNROLL
    for (int n = 0; n < 4; ++n) {
      int const at = i + n < count ? i + n : 0;  // past the last: any
      four[n] = sum[at / scored_keys][at % scored_keys];
    }
    quad const together = sums_of(four[0], four[1], four[2], four[3]);
    __builtin_memcpy(product + i, &together, sizeof together);
  }
  for (int k = by_vectors; k < depth; ++k, rows += Rows) {
    for (int i = 0; i < count; ++i) product[i] += rows[i / scored_keys] * key[i % scored_keys][k];
  }
  for (int r = 0; r < Rows; ++r) {
    float* const row = to + r * to_stride;
    float* const mine = product + r * scored_keys;
    for (int s = 0; !first && s < keys; ++s) mine[s] += row[s];
    if (keys == scored_keys) {
      __builtin_memcpy(row, mine, scored_keys * sizeof(float));
    } else {
      for (int s = 0; s < keys; ++s) row[s] = mine[s];
    }
  }
}

/// The same for any number of grouped rows and keys.
SWITCHYARD_TILE_TARGET inline void score_keys(float const* rows, int row_count, int depth, float const* weights,
                                              std::int64_t stride, int keys, bool first, float* to,
                                              std::int64_t to_stride) {
  for (int f = 0; f < keys; f += scored_keys) {
    int const some = keys - f < scored_keys ? keys - f : scored_keys;
    float const* const from = weights + f * stride;
    for (int r = 0; r < row_count; r += scored_rows) {
      float const* const group = rows + r * depth;
      float const* const next = r == 0 && f + 2 * scored_keys <= keys ? from + scored_keys * stride : from;
      float* const here = to + r * to_stride + f;
      switch (row_count - r) {
        case 1: score_group<1>(group, from, next, stride, some, depth, first, here, to_stride); break;
        case 2: score_group<2>(group, from, next, stride, some, depth, first, here, to_stride); break;
        case 3: score_group<3>(group, from, next, stride, some, depth, first, here, to_stride); break;
        default: score_group<scored_rows>(group, from, next, stride, some, depth, first, here, to_stride);
      }
    }
  }
}

/// How many values are no less than a bound.
SWITCHYARD_TILE_TARGET inline int count_no_less(float const* values, int count, float bound) {
  int const by_vectors = count / lanes * lanes;
  integers found = {};
  for (int i = 0; i < by_vectors; i += lanes) {
    floats some;
    __builtin_memcpy(&some, values + i, sizeof some);
    found -= some >= bound;
  }
  int total = 0;
  for (int i = 0; i < lanes; ++i) total += found[i];
  for (int i = by_vectors; i < count; ++i) total += values[i] >= bound ? 1 : 0;
  return total;
}

/// How many lanes come before the first one that is not true.
SWITCHYARD_TILE_TARGET inline int leading_lanes(integers true_lanes) {
  typedef std::int8_t bytes __attribute__((vector_size(lanes)));
  using word = std::conditional_t < lanes<8, std::uint32_t, std::uint64_t>;
  constexpr word ones = static_cast<word>(0x0101010101010101u);
  bytes const small = __builtin_convertvector(true_lanes, bytes);
  word some[lanes / sizeof(word)];
  __builtin_memcpy(some, &small, sizeof small);
  word total = 0;
  for (word w : some) total += (w & ones) * ones >> 8 * (sizeof(word) - 1);
  return static_cast<int>(total);
}

/// A bound, and how many of some values are no less.
struct value_cut {
  float least;
  int count;
};

/// Raises a bound that at least `kept` values are no less than, until no more than `kept + spare_values` are. More remain only where many
/// equal the bound and fewer than `kept` are above it.
SWITCHYARD_TILE_TARGET inline value_cut raise_cut(float const* values, int count, int kept, float least,
                                                  float largest) {
  value_cut cut{least, count_no_less(values, count, least)};
  float above = largest;
  for (int step = 0; cut.count > kept + spare_values; ++step) {
    float middle = 0.5f * cut.least + 0.5f * above;
    // Where halves of the distance are too many, halves of the numbers that lie between.
    if (step >= 16 || !(middle > cut.least && middle < above)) middle = number_between(cut.least, above);
    bool const is_last = !(middle > cut.least && middle < above);
    if (is_last) middle = above;
    int const found = count_no_less(values, count, middle);
    if (found >= kept) {
      cut = {middle, found};
    } else {
      above = middle;
    }
    if (is_last) break;
  }
  return cut;
}

/// rank[i] = how many values come before value i in the order of choice. All arrays have room for whole vectors.
SWITCHYARD_TILE_TARGET inline void count_preceding(float const* values, int count, std::int32_t* rank) {
  integers number;
  for (int i = 0; i < lanes; ++i) number[i] = i;
  for (int begin = 0; begin < count; begin += lanes) {
    floats mine;
    __builtin_memcpy(&mine, values + begin, sizeof mine);
    integers before = {};
    int const end = begin + lanes < count ? begin + lanes : count;
    SWITCHYARD_TILE_UNROLL
    for (int k = 0; k < begin; ++k) before -= mine <= values[k];
    for (int k = begin; k < end; ++k) before -= (mine < values[k]) | ((mine == values[k]) & (number > k - begin));
    SWITCHYARD_TILE_UNROLL
    for (int k = end; k < count; ++k) before -= mine < values[k];
    __builtin_memcpy(rank + begin, &before, sizeof before);
  }
}

/// The best keys of one half in the order of choice: at least as many as asked for, if there are.
SWITCHYARD_TILE_TARGET inline void best_keys(float const* values, int keys, int kept, float least, float largest,
                                             ranked_keys& best) {
  value_cut const cut = raise_cut(values, keys, kept, least, largest);
  float value[ranked_keys::room];
  std::int32_t id[ranked_keys::room], rank[ranked_keys::room];
  int found = 0;
  if (cut.count <= kept + spare_values) {
    for (int i = 0; i < keys; ++i) {
      value[found] = values[i];
      id[found] = i;
      found += values[i] >= cut.least ? 1 : 0;
    }
  } else {
    int equal = 0;  // of those, the first
    for (int i = 0; i < keys; ++i) equal += values[i] == cut.least ? 1 : 0;
    equal = kept - (cut.count - equal);
    for (int i = 0; i < keys; ++i) {
      if (values[i] < cut.least || (values[i] == cut.least && --equal < 0)) continue;
      value[found] = values[i];
      id[found++] = i;
    }
  }
  for (int i = found; i < found + lanes; ++i) value[i] = 0.0f;
  count_preceding(value, found, rank);
  for (int i = 0; i < found; ++i) {
    best.value[rank[i]] = value[i];
    best.id[rank[i]] = id[i];
  }
  for (int i = found; i < found + lanes; ++i) best.value[i] = 0.0f, best.id[i] = 0;
  best.count = found;
}

/// The largest values of up to 32 parts of a half, best first, whether all values are finite, and how many parts there are.
struct part_maxima {
  static constexpr int most = 32;
  float value[most + lanes];
  int count;
  bool finite;
};
SWITCHYARD_TILE_TARGET inline part_maxima maxima_of(float const* values, int keys) {
  constexpr int most = part_maxima::most, vectors = most / lanes;
  floats largest[vectors];
  words special = {};
  for (floats& some : largest) some = floats{} - infinity;
  int const by_parts = keys / most * most;
  for (int i = 0; i < by_parts; i += most) {
    for (int v = 0; v < vectors; ++v) {
      floats some;
      words bits;
      __builtin_memcpy(&some, values + i + v * lanes, sizeof some);
      __builtin_memcpy(&bits, values + i + v * lanes, sizeof bits);
      special |= reinterpret_cast<words>((bits & 0x7f800000u) == 0x7f800000u);
      largest[v] = some > largest[v] ? some : largest[v];
    }
  }
  float value[most + lanes] = {};
  __builtin_memcpy(value, largest, sizeof largest);
  part_maxima result{};
  result.finite = true;
  for (int i = 0; i < lanes; ++i) result.finite = result.finite && special[i] == 0;
  for (int i = by_parts; i < keys; ++i) {
    result.finite = result.finite && is_finite(values[i]);
    value[i - by_parts] = values[i] > value[i - by_parts] ? values[i] : value[i - by_parts];
  }
  result.count = keys < most ? keys : most;
  std::int32_t rank[most + lanes];
  count_preceding(value, result.count, rank);
  for (int i = 0; i < result.count; ++i) result.value[rank[i]] = value[i];
  return result;
}

/// What the last of `kept` sums is no less than: `a` values of one half and `b` of the other make a * b sums.
SWITCHYARD_TILE_TARGET inline float least_sum(float const* first, int firsts, float const* second, int seconds,
                                              int kept) {
  float least = -infinity;
  for (int a = (kept + seconds - 1) / seconds; a <= firsts && a <= kept; a += a / 4 + 1) {
    float const sum = first[a - 1] + second[(kept + a - 1) / a - 1];
    least = sum > least ? sum : least;
  }
  return least;
}

/// The best `kept` of all pairs of keys, best first. False where a half score or a chosen sum is not finite. `put_in_order` does the
/// same from the best keys of each half where too many sums are equal.
SWITCHYARD_TILE_TARGET inline bool choose_pairs(float const* first, float const* second, int keys, int kept,
                                                std::int32_t* experts, float* scores) {
  part_maxima const of_first = maxima_of(first, keys), of_second = maxima_of(second, keys);
  if (!of_first.finite || !of_second.finite) return false;
  float const least = least_sum(of_first.value, of_first.count, of_second.value, of_second.count, kept);
  if (!(least < infinity)) return false;
  // The margin is more than what the roundings of these few sums can be.
  auto const bound = [least](float other) {
    float const margin = 0x1p-22f * ((least < 0 ? -least : least) + (other < 0 ? -other : other));
    return least - other - margin;
  };
  ranked_keys u, v;
  best_keys(first, keys, kept, bound(of_second.value[0]), of_first.value[0], u);
  best_keys(second, keys, kept, bound(of_first.value[0]), of_second.value[0], v);

  float const lowest = least_sum(u.value, u.count, v.value, v.count, kept);
  float sum[most_sums + lanes];
  sum[0] = u.value[0] + v.value[0];
  int sums = 0;
  for (int i = 0; i < u.count && i < kept && u.value[i] + v.value[0] >= lowest; ++i) {
    int const partners = product_key::partners(i, kept, v.count);
    for (int k = 0; k < partners; k += lanes) {
      floats some;
      __builtin_memcpy(&some, v.value + k, sizeof some);
      some += u.value[i];
      __builtin_memcpy(sum + sums + k, &some, sizeof some);
    }
    sums += partners;
  }
  value_cut const cut = raise_cut(sum, sums, kept, lowest, sum[0]);
  if (cut.count > kept + spare_values) return merge_pairs(u, v, kept, keys, experts, scores);

  float of[ranked_keys::room], score[ranked_keys::room];
  std::int32_t id[ranked_keys::room], rank[ranked_keys::room], expert[ranked_keys::room];
  integers number;
  for (int i = 0; i < lanes; ++i) number[i] = i;
  int found = 0;
  for (int i = 0; found < cut.count; ++i) {
    int const partners = product_key::partners(i, kept, v.count);
    for (int k = 0, more = lanes; k < partners && more == lanes; k += lanes) {
      floats some;
      integers which;
      __builtin_memcpy(&some, v.value + k, sizeof some);
      __builtin_memcpy(&which, v.id + k, sizeof which);
      some += u.value[i];
      which += u.id[i] * keys;
      __builtin_memcpy(of + found, &some, sizeof some);
      __builtin_memcpy(id + found, &which, sizeof which);
      more = leading_lanes((some >= cut.least) & (number < partners - k));
      found += more;
    }
  }
  for (int i = found; i < found + lanes; ++i) of[i] = 0.0f;
  count_preceding(of, found, rank);
  for (int i = 0; i < found; ++i) {
    score[rank[i]] = of[i];
    expert[rank[i]] = id[i];
  }
  if (!is_finite(score[0]) || !is_finite(score[kept - 1])) return false;
  int equal = 0;
  for (int i = 1; i < found; ++i) equal += score[i] == score[i - 1] ? 1 : 0;
  for (int k = 1; equal > 0 && k < found; ++k) {  // of equal roundings the exact sums decide
    auto const exact = [&](int i) {
      return product_key::scored{product_key::score_of(first[expert[i] / keys], second[expert[i] % keys]), expert[i]};
    };
    for (int i = k; i > 0 && score[i] == score[i - 1] && product_key::precedes(exact(i), exact(i - 1)); --i) {
      std::int32_t const here = expert[i];
      expert[i] = expert[i - 1];
      expert[i - 1] = here;
    }
  }
  __builtin_memcpy(experts, expert, static_cast<std::size_t>(kept) * sizeof(std::int32_t));
  __builtin_memcpy(scores, score, static_cast<std::size_t>(kept) * sizeof(float));
  return true;
}

/// The softmax of scores of which none is above `largest`.
SWITCHYARD_TILE_TARGET inline void soften_scores(float const* scores, int count, float largest, float* weights) {
  for (int k = 0; k < count; ++k) weights[k] = exponential(scores[k] - largest);
  float total = 0.0f;
  for (int k = 0; k < count; ++k) total += weights[k];
  for (int k = 0; k < count; ++k) weights[k] /= total;
}
