// Part of tile.inl: few rows and codes of four bits, two neighbouring ones in a byte, of which 64 bytes are loaded at a time.
//
// A lane has eight neighbouring codes, one for each of eight vectors of floats: weight 8 i + n of 128 is lane i of vector n, and so is element
// 8 i + n of a row. The weights of a lane have one scale, which multiplies their sum: 25 instructions for 128 weights and a row, where widening each takes 28, and 9
// more for each other row.

/// The order of rows: `depth_position` of eight parts.
struct dealt;
template <>
struct stored<dealt> {
  static constexpr int parts = 8;
  static constexpr bool in_order = false;
};
inline constexpr int dealt_depth = 8 * lanes;

/// Formats whose codes stand so: what they stand for, how many lanes have a scale, and what multiplies a whole row's sums.
template <class Format, class Codes, int Lanes>
struct dealt_codes {
  using codes = Codes;
  static constexpr int lanes_of_scale = Lanes;
  SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE static void ready(coded_row const& row, int first, int count,
                                                                  found_scales const& found, ready_scales& to) {
    coded<Format>::ready(row, first, count, found, to);
  }
  SWITCHYARD_TILE_TARGET static floats finish(floats sum, coded_row const&) { return sum; }
};
template <class Format>
struct dealt_of;
template <>
struct dealt_of<quantised::mxfp4> : dealt_codes<quantised::mxfp4, e2m1_codes, 4> {};
template <>
struct dealt_of<quantised::int4_packed> : dealt_codes<quantised::int4_packed, codes_around<8>, 4> {};
template <quantised::global_scale Global>
struct dealt_of<quantised::nvfp4_of<Global>> : dealt_codes<quantised::nvfp4_of<Global>, e2m1_codes, 2> {
  using format = coded<quantised::nvfp4_of<Global>>;
  SWITCHYARD_TILE_TARGET SWITCHYARD_TILE_INLINE static void ready(coded_row const&, int, int, found_scales const& found,
                                                                  ready_scales& to) {
    format::widen_scales(found, to);
  }
  SWITCHYARD_TILE_TARGET static floats finish(floats sum, coded_row const& row) { return format::scaled(sum, row); }
};

template <class Format>
concept is_dealt = requires {
  typename dealt_of<Format>::codes;
};

/// Numbers i / Each + First, a lane for each.
template <int Each, int... Lane>
SWITCHYARD_TILE_TARGET inline words lane_numbers(std::integer_sequence<int, Lane...>) {
  return words{static_cast<std::uint32_t>(Lane / Each)...};
}

/// products[r * Streams + s] = row r . the feature of stream s, as `multiply_coded_group`.
template <class Format, int Rows, int Streams>
SWITCHYARD_TILE_TARGET void multiply_dealt_group(float const* rows, coded_row const (&weights)[Streams],
                                                 coded_row const (&later)[Streams], int blocks,
                                                 found_scales (&found)[Streams], float* products) {
  using format = coded<Format>;
  constexpr int lanes_of_scale = dealt_of<Format>::lanes_of_scale, each = 4 / lanes_of_scale;
  floats table, sums[Rows * Streams] = {};
  __builtin_memcpy(&table, values_of_codes<typename dealt_of<Format>::codes>.of_code, sizeof table);
  words const places = lane_numbers<lanes_of_scale>(std::make_integer_sequence<int, lanes>{});
  ready_scales scales[Streams];
  for (int first = 0; first < blocks; first += coded_piece) {
    int const left = blocks - first, count = left < coded_piece ? left : coded_piece;
    for (int s = 0; s < Streams; ++s) dealt_of<Format>::ready(weights[s], first, count, found[s], scales[s]);
    bool const is_last = left <= coded_piece;
    int const next = is_last ? 0 : first + coded_piece;
    for (int s = 0; s < Streams; ++s) {
      find_scales<format>(is_last ? later[s] : weights[s], next, blocks - next, found[s]);
    }
    for (int b = 0; b < count; b += dealt_depth / 32, rows += dealt_depth * Rows) {
      // Whole vectors as they were stored: others would wait until all of them are in the cache.
      int const from = each * b / lanes * lanes;
      words const at = places + static_cast<std::uint32_t>(each * b - from);
      SWITCHYARD_TILE_UNROLL
      for (int s = 0; s < Streams; ++s) {
        words codes;
        __builtin_memcpy(&codes, weights[s].codes + (first + b) * 16, sizeof codes);
        SWITCHYARD_TILE_LOADED(codes);
        __builtin_prefetch(later[s].codes + (first + b) * 16, 0, 2);
        floats sum[Rows];
        SWITCHYARD_TILE_UNROLL
        for (int n = 0; n < 8; ++n) {
          floats const right = look_up(table, n == 0 ? codes : codes >> (4 * n));
          SWITCHYARD_TILE_UNROLL
          for (int r = 0; r < Rows; ++r) {
            floats const left_value = load_floats(rows + (n * Rows + r) * lanes);
            sum[r] = n == 0 ? left_value * right : sum[r] + left_value * right;
          }
        }
        floats const scale = look_up(load_floats(scales[s].scale + from), at);
        SWITCHYARD_TILE_UNROLL
        for (int r = 0; r < Rows; ++r) sums[r * Streams + s] += sum[r] * scale;
      }
    }
  }
  SWITCHYARD_TILE_UNROLL
  for (int i = 0; i < Rows * Streams; ++i) sums[i] = dealt_of<Format>::finish(sums[i], weights[i % Streams]);
  put_sums(sums, products);
}
