// Part of tile.inl: values for AMX's tiles, which take pairs of bfloat16 in words. A float is the sum of two bfloat16 parts,
// its nearest one and that of what is left.

/// The nearest bfloat16 of each float, in the upper half of its word: what bfloat16(float) does.
SWITCHYARD_TILE_TARGET inline words nearest_bfloat16(floats values) {
  words const bits = reinterpret_cast<words>(values), is_nan = reinterpret_cast<words>(values != values);
  words const rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return ((is_nan & (bits | 0x00400000u)) | (~is_nan & rounded)) & 0xffff0000u;
}

/// The parts of some values, in upper halves.
SWITCHYARD_TILE_TARGET inline void split_floats(floats values, words (&parts)[1]) {
  parts[0] = nearest_bfloat16(values);
}
SWITCHYARD_TILE_TARGET inline void split_floats(floats values, words (&parts)[2]) {
  parts[0] = nearest_bfloat16(values);
  floats const rest = values - reinterpret_cast<floats>(parts[0]);
  words const is_finite = reinterpret_cast<words>((reinterpret_cast<words>(rest) & 0x7f800000u) != 0x7f800000u);
  parts[1] = nearest_bfloat16(rest) & is_finite;  // not so beyond bfloat16's range
}

/// The words of 16 rows that `pack_panel` of amx.hpp puts side by side: words of a pair of elements at to[word * 16 + row], the second
/// parts `part_words` further. Rows past the last are zero.
template <class Element>
SWITCHYARD_TILE_TARGET void pack_pairs(Element const* const* rows, int row_count, std::int64_t first, std::uint32_t* to,
                                       std::int64_t part_words) {
  constexpr int together = 16, pairs = 16;
  for (int i = 0; i < together; i += lanes) {
    if constexpr (sizeof(Element) == 2) {
      for (int pair = 0; pair < pairs; pair += lanes) {
        floats square[lanes] = {};
        for (int r = 0; r < lanes && i + r < row_count; ++r) {
          __builtin_memcpy(&square[r], rows[i + r] + first + 2 * pair, sizeof(floats));
        }
        transpose(square);
        for (int j = 0; j < lanes; ++j) __builtin_memcpy(to + (pair + j) * together + i, &square[j], sizeof(floats));
      }
    } else {
      for (int k = 0; k < 2 * pairs; k += lanes) {
        floats square[lanes] = {};
        for (int r = 0; r < lanes && i + r < row_count; ++r) square[r] = load_floats(rows[i + r] + first + k);
        transpose(square);
        for (int j = 0; j < lanes; j += 2) {
          words even[2], odd[2];
          split_floats(square[j], even);
          split_floats(square[j + 1], odd);
          for (int part = 0; part < 2; ++part) {
            words const pair = even[part] >> 16 | odd[part];
            __builtin_memcpy(to + (k + j) / 2 * together + i + part * part_words, &pair, sizeof pair);
          }
        }
      }
    }
  }
}

/// Puts what 16 rows have for one element into the words of its pair: an even one first, which clears the other.
template <int Parts>
SWITCHYARD_TILE_TARGET void put_in_pairs(float const* values, bool odd, std::uint32_t* to, std::int64_t part_words) {
  for (int i = 0; i < 16; i += lanes) {
    words part[Parts];
    split_floats(load_floats(values + i), part);
    for (int p = 0; p < Parts; ++p) {
      std::uint32_t* const at = to + p * part_words + i;
      words pair = part[p] >> 16;
      if (odd) {
        __builtin_memcpy(&pair, at, sizeof pair);
        pair |= part[p];
      }
      __builtin_memcpy(at, &pair, sizeof pair);
    }
  }
}

/// to[k] and to[pitch_of_parts + k] = the two parts of from[k], for a count that is a multiple of the lanes.
SWITCHYARD_TILE_TARGET inline void split_row(float const* from, int count, bfloat16* to, std::int64_t part_elements) {
  typedef std::uint16_t shorts __attribute__((vector_size(SWITCHYARD_TILE_BYTES / 2)));
  for (int k = 0; k < count; k += lanes) {
    words part[2];
    split_floats(load_floats(from + k), part);
    for (int p = 0; p < 2; ++p) {
      shorts const narrow = __builtin_convertvector(part[p] >> 16, shorts);
      __builtin_memcpy(static_cast<void*>(to + p * part_elements + k), &narrow, sizeof narrow);
    }
  }
}
