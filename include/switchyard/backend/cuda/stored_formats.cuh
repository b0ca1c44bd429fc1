#pragma once

#include <switchyard/backend/cuda/instructions.cuh>
#include <switchyard/backend/cuda/stored_lines.cuh>
#include <switchyard/backend/cuda/widen.cuh>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/host_device.hpp>
#include <switchyard/quantised/any_of.hpp>
#include <switchyard/quantised/blocks.hpp>
#include <switchyard/quantised/grouped.hpp>
#include <switchyard/quantised/scaled.hpp>

#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>

/// How the bytes of each format lie in its lines, and how they become elements.
namespace switchyard::cuda {

// ---- GGUF's blocks ----

/// Blocks of 32 weights.
template <class Block>
struct line_of_small_blocks {
  static constexpr int streams = 1;
  template <int>
  SWITCHYARD_HD static constexpr int begin(int column) {
    return column / 32 * Block::bytes;
  }
  template <int>
  SWITCHYARD_HD static constexpr int end(int column) {
    return column / 32 * Block::bytes;
  }
  template <int>
  __device__ static byte_stream stream(quantised::block_matrix<Block> const& m, int expert, int row) {
    return {m.data + expert * m.expert_stride + row * m.row_stride, std::int64_t{m.columns} / 32 * Block::bytes};
  }
};

template <>
struct stored_line<quantised::block_matrix<quantised::q8_0>> : line_of_small_blocks<quantised::q8_0> {
  template <class Element, class Reader>
  __device__ static void widen(Element, Reader const& reader, int column, std::uint32_t (&pairs)[16]) {
    std::uint32_t words[9];
    reader.template read<0, 34>(begin<0>(column), words);
    float const d = half_of(words[0]);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      signed_bytes_to(Element{}, __funnelshift_r(words[i], words[i + 1], 16), d, pairs[2 * i], pairs[2 * i + 1]);
    }
  }
};

template <>
struct stored_line<quantised::block_matrix<quantised::q4_0>> : line_of_small_blocks<quantised::q4_0> {
  template <class Element, class Reader>
  __device__ static void widen(Element, Reader const& reader, int column, std::uint32_t (&pairs)[16]) {
    std::uint32_t words[5];
    reader.template read<0, 18>(begin<0>(column), words);
    float const d = half_of(words[0]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      std::uint32_t const codes = __funnelshift_r(words[i], words[i + 1], 16);
      small_codes_to(Element{}, codes & 0x0f0f0f0fu, 8.0f, d, pairs[2 * i], pairs[2 * i + 1]);
      small_codes_to(Element{}, codes >> 4 & 0x0f0f0f0fu, 8.0f, d, pairs[8 + 2 * i], pairs[9 + 2 * i]);
    }
  }
};

template <>
struct stored_line<quantised::block_matrix<quantised::mxfp4_halves>> : line_of_small_blocks<quantised::mxfp4_halves> {
  template <class Element, class Reader>
  __device__ static void widen(Element, Reader const& reader, int column, std::uint32_t (&pairs)[16]) {
    std::uint32_t words[5];
    reader.template read<0, 17>(begin<0>(column), words);
    power_of_two_scale<Element> const scale(words[0] & 255u);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      std::uint32_t const codes = __funnelshift_r(words[i], words[i + 1], 8);
      // Bytes have the codes of two weights that are 16 apart.
      e2m1_codes const first(codes), second(codes >> 16);
      pairs[2 * i] = scale.times(first.pair<0, 2>());
      pairs[2 * i + 1] = scale.times(second.pair<0, 2>());
      pairs[8 + 2 * i] = scale.times(first.pair<1, 3>());
      pairs[9 + 2 * i] = scale.times(second.pair<1, 3>());
    }
  }
};

template <>
struct stored_line<quantised::block_matrix<quantised::q4_K>> {
  static constexpr int streams = 1;
  template <int>
  SWITCHYARD_HD static constexpr int begin(int column) {
    return column / 256 * 144;
  }
  template <int>
  SWITCHYARD_HD static constexpr int end(int column) {
    return column / 256 * 144 + (column % 256 == 0 ? 0 : 16 + column % 256 / 2);
  }
  template <int>
  __device__ static byte_stream stream(quantised::block_matrix<quantised::q4_K> const& m, int expert, int row) {
    return {m.data + expert * m.expert_stride + row * m.row_stride, std::int64_t{m.columns} / 256 * 144};
  }
  template <class Element, class Reader>
  __device__ static void widen(Element, Reader const& reader, int column, std::uint32_t (&pairs)[16]) {
    std::uint32_t head[4], codes[8];
    reader.template read<0, 16>(begin<0>(column), head);
    reader.template read<0, 32>(begin<0>(column) + 16 + column % 256 / 64 * 32, codes);
    // Six bits of a scale and of a minimum for each 32 weights: those of the first four, then four bits of the others and, above the
    // first ones, two.
    unsigned const j = static_cast<unsigned>(column) / 32 % 8, shift = j % 4 * 8;
    std::uint32_t const low = head[1] >> shift, high = head[2] >> shift, last = head[3] >> shift;
    std::uint32_t const scale = j < 4 ? low & 63u : (last & 15u) | (low >> 2 & 48u),
                        least = j < 4 ? high & 63u : (last >> 4 & 15u) | (high >> 2 & 48u);
    float const d = half_of(head[0]) * small_float(scale), m = half_of(head[0] >> 16) * small_float(least);
    int const nibble = static_cast<int>(j % 2) * 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      codes_less_to(Element{}, codes[i] >> nibble & 0x0f0f0f0fu, d, m, pairs[2 * i], pairs[2 * i + 1]);
    }
  }
};

template <>
struct stored_line<quantised::block_matrix<quantised::q6_K>> {
  static constexpr int streams = 1;
  template <int>
  SWITCHYARD_HD static constexpr int begin(int column) {
    return column / 256 * 210;
  }
  template <int>
  SWITCHYARD_HD static constexpr int end(int column) {
    return (column + 255) / 256 * 210;
  }
  template <int>
  __device__ static byte_stream stream(quantised::block_matrix<quantised::q6_K> const& m, int expert, int row) {
    return {m.data + expert * m.expert_stride + row * m.row_stride, std::int64_t{m.columns} / 256 * 210};
  }
  template <class Element, class Reader>
  __device__ static void widen(Element, Reader const& reader, int column, std::uint32_t (&pairs)[16]) {
    int const block = begin<0>(column), j = column / 32 % 4, side = column / 128 % 2;
    // By 16 weights, which have a scale, and that read last: all at once take more registers than two blocks on a multiprocessor have.
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      std::uint32_t low[4], high[4], d[1], of_part[1];
      reader.template read<0, 16>(block + 64 * side + 32 * (j % 2) + 16 * part, low);
      reader.template read<0, 16>(block + 128 + 32 * side + 16 * part, high);
      reader.template read<0, 2>(block + 208, d);
      reader.template read<0, 1>(block + 192 + column % 256 / 16 + part, of_part);
      float const scale = half_of(d[0]) * static_cast<float>(static_cast<std::int8_t>(of_part[0]));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        std::uint32_t const codes = (low[i] >> (j < 2 ? 0 : 4) & 0x0f0f0f0fu) | (high[i] >> (2 * j) & 0x03030303u) << 4;
        small_codes_to(Element{}, codes, 32.0f, scale, pairs[8 * part + 2 * i], pairs[8 * part + 2 * i + 1]);
      }
    }
  }
};

// ---- codes in one tensor, scales in another ----

/// `CodeBits` of a weight, with a scale of `ScaleBytes` for each `Group` weights of a line.
template <int CodeBits, int ScaleBytes, int Group>
struct line_of_codes {
  static constexpr int streams = 2;
  template <int Stream>
  SWITCHYARD_HD static constexpr int begin(int column) {
    return Stream == 0 ? column * CodeBits / 8 : column / Group * ScaleBytes;
  }
  template <int Stream>
  SWITCHYARD_HD static constexpr int end(int column) {
    return Stream == 0 ? column * CodeBits / 8 : (column + Group - 1) / Group * ScaleBytes;
  }
};
/// The same with a scale for a whole line.
template <int CodeBits, int ScaleBytes>
struct line_of_codes<CodeBits, ScaleBytes, 0> {
  static constexpr int streams = 2;
  template <int Stream>
  SWITCHYARD_HD static constexpr int begin(int column) {
    return Stream == 0 ? column * CodeBits / 8 : 0;
  }
  template <int Stream>
  SWITCHYARD_HD static constexpr int end(int column) {
    return Stream == 0 ? column * CodeBits / 8 : column == 0 ? 0 : ScaleBytes;
  }
};

template <class Scale>
__device__ float scale_of(std::uint32_t bits) {
  if constexpr (sizeof(Scale) == 4) {
    return __uint_as_float(bits);
  } else {
    return unpack(Scale{}, bits & 0xffffu).x;
  }
}

template <class Scale>
struct stored_line<quantised::int8_channel<Scale>> : line_of_codes<8, sizeof(Scale), 0> {
  using codes = line_of_codes<8, sizeof(Scale), 0>;
  template <int Stream>
  __device__ static byte_stream stream(quantised::int8_channel<Scale> const& m, int expert, int row) {
    std::int64_t const line = std::int64_t{expert} * m.rows + row;
    if constexpr (Stream == 0) {
      return stream_of(m.weight + line * m.columns, m.columns);
    } else {
      return stream_of(m.scale + line, 1);
    }
  }
  template <class Element, class Reader>
  __device__ static void widen(Element, Reader const& reader, int column, std::uint32_t (&pairs)[16]) {
    float const scale = scale_of<Scale>(reader.template value<1>(0));
    std::uint32_t words[8];
    reader.template read<0, 32>(codes::template begin<0>(column), words);
#pragma unroll
    for (int i = 0; i < 8; ++i) signed_bytes_to(Element{}, words[i], scale, pairs[2 * i], pairs[2 * i + 1]);
  }
};

template <class Element, class Codes, class Reader>
__device__ void widen_e4m3(Reader const& reader, int column, float scale, std::uint32_t (&pairs)[16]) {
  std::uint32_t words[8];
  reader.template read<0, 32>(Codes::template begin<0>(column), words);
#pragma unroll
  for (int i = 0; i < 8; ++i) e4m3_to(Element{}, words[i], scale, pairs[2 * i], pairs[2 * i + 1]);
}

template <class Scale>
struct stored_line<quantised::fp8_tensor<Scale>> : line_of_codes<8, sizeof(Scale), 0> {
  template <int Stream>
  __device__ static byte_stream stream(quantised::fp8_tensor<Scale> const& m, int expert, int row) {
    if constexpr (Stream == 0) {
      return stream_of(m.weight + (std::int64_t{expert} * m.rows + row) * m.columns, m.columns);
    } else {
      return stream_of(m.scale + expert, 1);
    }
  }
  template <class Element, class Reader>
  __device__ static void widen(Element, Reader const& reader, int column, std::uint32_t (&pairs)[16]) {
    widen_e4m3<Element, line_of_codes<8, sizeof(Scale), 0>>(reader, column,
                                                            scale_of<Scale>(reader.template value<1>(0)), pairs);
  }
};

template <>
struct stored_line<quantised::fp8_block> : line_of_codes<8, 4, quantised::fp8_block::side> {
  template <int Stream>
  __device__ static byte_stream stream(quantised::fp8_block const& m, int expert, int row) {
    if constexpr (Stream == 0) {
      return stream_of(m.weight + (std::int64_t{expert} * m.rows + row) * m.columns, m.columns);
    } else {
      std::int64_t const squares = divide_up(m.columns, m.side);
      return stream_of(m.scale_inv + expert * m.squares() + row / m.side * squares, squares);
    }
  }
  template <class Element, class Reader>
  __device__ static void widen(Element, Reader const& reader, int column, std::uint32_t (&pairs)[16]) {
    widen_e4m3<Element, line_of_codes>(reader, column, __uint_as_float(reader.template value<1>(begin<1>(column))),
                                       pairs);
  }
};

template <>
struct stored_line<quantised::mxfp4> : line_of_codes<4, 1, 32> {
  template <int Stream>
  __device__ static byte_stream stream(quantised::mxfp4 const& m, int expert, int row) {
    std::int64_t const line = (std::int64_t{expert} * m.rows + row) * m.row_stride;
    if constexpr (Stream == 0) {
      return stream_of(m.blocks + line * (m.columns / 2), m.columns / 2);
    } else {
      return stream_of(m.scales + line * (m.columns / 32), m.columns / 32);
    }
  }
  template <class Element, class Reader>
  __device__ static void widen(Element, Reader const& reader, int column, std::uint32_t (&pairs)[16]) {
    power_of_two_scale<Element> const scale(reader.template value<1>(begin<1>(column)) & 255u);
    std::uint32_t words[4];
    reader.template read<0, 16>(begin<0>(column), words);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      e2m1_codes const codes(words[i / 2] >> i % 2 * 16);
      pairs[2 * i] = scale.times(codes.pair<0, 1>());
      pairs[2 * i + 1] = scale.times(codes.pair<2, 3>());
    }
  }
};

template <quantised::global_scale Global>
struct stored_line<quantised::nvfp4_of<Global>> {
  static constexpr int streams = 3;
  template <int Stream>
  SWITCHYARD_HD static constexpr int begin(int column) {
    return Stream == 0 ? column / 2 : Stream == 1 ? column / 16 : 0;
  }
  template <int Stream>
  SWITCHYARD_HD static constexpr int end(int column) {
    return Stream == 0 ? column / 2 : Stream == 1 ? column / 16 : column == 0 ? 0 : 4;
  }
  template <int Stream>
  __device__ static byte_stream stream(quantised::nvfp4_of<Global> const& m, int expert, int row) {
    std::int64_t const line = std::int64_t{expert} * m.rows + row;
    if constexpr (Stream == 0) {
      return stream_of(m.weight + line * (m.columns / 2), m.columns / 2);
    } else if constexpr (Stream == 1) {
      return stream_of(m.scale + line * (m.columns / 16), m.columns / 16);
    } else {
      return stream_of(m.global + expert, 1);
    }
  }
  template <class Element, class Reader>
  __device__ static void widen(Element, Reader const& reader, int column, std::uint32_t (&pairs)[16]) {
    float const global = __uint_as_float(reader.template value<2>(0));
    std::uint32_t const scales = reader.template value<1>(begin<1>(column));
    float factor[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float const of_block = quantised::e4m3(scales >> 8 * i & 255u);
      factor[i] = Global == quantised::global_scale::divides ? of_block / global : of_block * global;
    }
    std::uint32_t words[4];
    reader.template read<0, 16>(begin<0>(column), words);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      e2m1_codes const codes(words[i / 2] >> i % 2 * 16);
      pairs[2 * i] = times(Element{}, codes.pair<0, 1>(), factor[i / 4]);
      pairs[2 * i + 1] = times(Element{}, codes.pair<2, 3>(), factor[i / 4]);
    }
  }
};

template <>
struct stored_line<quantised::int4_packed> : line_of_codes<4, 2, 32> {
  template <int Stream>
  __device__ static byte_stream stream(quantised::int4_packed const& m, int expert, int row) {
    std::int64_t const line = std::int64_t{expert} * m.rows + row;
    if constexpr (Stream == 0) {
      return stream_of(m.weight + line * (m.columns / 8), m.columns / 8);
    } else {
      return stream_of(m.scale + line * (m.columns / 32), m.columns / 32);
    }
  }
  template <class Element, class Reader>
  __device__ static void widen(Element, Reader const& reader, int column, std::uint32_t (&pairs)[16]) {
    float const scale = scale_of<bfloat16>(reader.template value<1>(begin<1>(column)));
    std::uint32_t words[4];
    reader.template read<0, 16>(begin<0>(column), words);
#pragma unroll
    for (int i = 0; i < 4; ++i) neighbours_to(Element{}, words[i], 8.0f, scale, &pairs[4 * i]);
  }
};

// ---- codes of neighbouring lines beside each other, with scales and zeros of groups ----

/// What each lane has of its line, beside `CodeWords` words of codes that all lanes have of a stage: where a group begins, the word that has its
/// scale and the one that has its zero.
template <class Format, int Lines, int Stages, int CodeWords>
struct lines_of_groups {
  static constexpr bool exists = true;
  static constexpr int slots = Stages + 1;  // a group may have begun one stage before
  static constexpr int lanes = 2 * Lines, words_of_stage = CodeWords + 2 * lanes;
  static constexpr int bytes = slots * words_of_stage * 4;

 protected:
  __device__ static int lane_of(int number, int half) { return number / 16 * 32 + half * 16 + number % 16; }
  __device__ static std::uint32_t word(std::uint32_t memory, int stage, int index) {
    return memory + static_cast<std::uint32_t>(stage % slots * words_of_stage + index) * 4u;
  }

  __device__ static void enqueue_group(std::uint32_t memory, Format const& m, int expert, int row, int lane,
                                       int stage) {
    if (stage * stored_depth % m.group != 0) return;
    std::uintptr_t const scale = scale_at(m, expert, row, stage);
    std::int64_t const line = expert * m.groups() + stage * stored_depth / m.group;
    copy_word_async(word(memory, stage, CodeWords + lane), reinterpret_cast<void const*>(scale / 4 * 4), 4);
    copy_word_async(word(memory, stage, CodeWords + lanes + lane), m.qzeros + line * (m.rows / 8) + row / 8, 4);
  }
  __device__ static float scale(std::uint32_t memory, Format const& m, int expert, int row, int lane, int stage) {
    std::uint32_t const found = load_shared_word(word(memory, first_of_group(stage), CodeWords + lane));
    return half_of(found >> scale_at(m, expert, row, stage) % 4 * 8);
  }
  /// The zeros of eight neighbouring lines.
  __device__ static std::uint32_t zeros(std::uint32_t memory, int lane, int stage) {
    return load_shared_word(word(memory, first_of_group(stage), CodeWords + lanes + lane));
  }

 private:
  __device__ static int first_of_group(int stage) {
    constexpr int stages = Format::group / stored_depth;
    return stage / stages * stages;
  }
  __device__ static std::uintptr_t scale_at(Format const& m, int expert, int row, int stage) {
    return reinterpret_cast<std::uintptr_t>(m.scales + (expert * m.groups() + stage * stored_depth / m.group) * m.rows +
                                            row);
  }
};

/// A word has eight weights of a line: each lane copies the four of a stage that it widens.
template <int Lines, int Stages>
struct stored_lines<quantised::gptq, Lines, Stages> : lines_of_groups<quantised::gptq, Lines, Stages, 8 * Lines> {
  static constexpr bool shared_by_warps = false;

 private:
  using groups = lines_of_groups<quantised::gptq, Lines, Stages, 8 * Lines>;

 public:
  __device__ static void enqueue(std::uint32_t memory, quantised::gptq const& m, int expert, int row, int number,
                                 int half, int stage) {
    int const column = stage * stored_depth + 32 * half, lane = groups::lane_of(number, half);
    std::uint32_t const* const codes = m.qweight + (std::int64_t{expert} * (m.columns / 8) + column / 8) * m.rows + row;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int const bytes = column + 8 * i < m.columns ? 4 : 0;
      copy_word_async(groups::word(memory, stage, i * groups::lanes + lane),
                      bytes > 0 ? codes + std::int64_t{i} * m.rows : m.qweight, bytes);
    }
    groups::enqueue_group(memory, m, expert, row, lane, stage);
  }

  template <class Element>
  __device__ static void widen(std::uint32_t memory, quantised::gptq const& m, int expert, int row, int number,
                               int half, int stage, std::uint32_t (&pairs)[16]) {
    int const lane = groups::lane_of(number, half);
    float const scale = groups::scale(memory, m, expert, row, lane, stage);
    std::uint32_t const zeros = groups::zeros(memory, lane, stage) >> row % 8 * 4;
    float const zero = small_float((zeros & 15u) + static_cast<std::uint32_t>(m.added_to_zero));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      neighbours_to(Element{}, load_shared_word(groups::word(memory, stage, i * groups::lanes + lane)), zero, scale,
                    &pairs[4 * i]);
    }
  }
};

/// Words of eight lines in a stage, of which 32 columns take 36: what a warp writes at once, and what it reads, stand in different banks.
template <int Lines>
inline constexpr int words_of_eight = Lines == 32 ? 72 : 76;

/// A word has weights of eight lines of one column: lanes copy neighbouring words, whoever widens them, so that sectors come whole, to where
/// those of eight lines follow each other.
template <int Lines, int Stages>
struct stored_lines<quantised::awq, Lines, Stages>
    : lines_of_groups<quantised::awq, Lines, Stages, Lines / 8 * words_of_eight<Lines>> {
  static constexpr bool shared_by_warps = true;

 private:
  using groups = lines_of_groups<quantised::awq, Lines, Stages, Lines / 8 * words_of_eight<Lines>>;

  __device__ static std::uint32_t place(std::uint32_t memory, int stage, int eight, int column) {
    return groups::word(memory, stage, eight * words_of_eight<Lines> + column / 32 * 36 + column % 32);
  }

 public:
  __device__ static void enqueue(std::uint32_t memory, quantised::awq const& m, int expert, int row, int number,
                                 int half, int stage) {
    // A warp copies the words of eight times eight lines, a sector, in each of four columns; of fewer lines more columns.
    constexpr int eights = Lines / 8, together = eights < 8 ? eights : 8, sectors = eights / together;
    int const lane = groups::lane_of(number, half), warp = lane / 32, first_row = row - number;
    int const eight = lane % together + warp % sectors * together,
              within = lane % 32 / together + warp / sectors * (32 / together), column = stage * stored_depth + within;
    std::uint32_t const* from =
        m.qweight + (std::int64_t{expert} * m.columns + column) * (m.rows / 8) + first_row / 8 + eight;
    int const rest = first_row + 8 * eight < m.rows ? m.columns - column : 0;
    constexpr int apart = groups::lanes / eights;  // columns of all lanes
#pragma unroll 1                                   // which takes fewer registers
    for (int more = 0; more < stored_depth; more += apart) {
      copy_word_async(place(memory, stage, eight, within + more), more < rest ? from : m.qweight, more < rest ? 4 : 0);
      from += std::int64_t{apart} * (m.rows / 8);
    }
    if (row < m.rows) groups::enqueue_group(memory, m, expert, row, lane, stage);
  }

  template <class Element>
  __device__ static void widen(std::uint32_t memory, quantised::awq const& m, int expert, int row, int number, int half,
                               int stage, std::uint32_t (&pairs)[16]) {
    int const lane = groups::lane_of(number, half), output = row % 8;
    unsigned const shift = static_cast<unsigned>(output % 2 * 4 + output / 2) * 4;
    float const scale = groups::scale(memory, m, expert, row, lane, stage);
    float const zero = small_float(groups::zeros(memory, lane, stage) >> shift & 15u);
    unsigned const byte = shift / 8, both = byte | (byte + 4) << 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      chunk const words = load_shared(place(memory, stage, number / 8, 32 * half + 4 * i));
      std::uint32_t const bytes =
          __byte_perm(__byte_perm(words.x, words.y, both), __byte_perm(words.z, words.w, both), 0x5410u);
      small_codes_to(Element{}, bytes >> shift % 8 & 0x0f0f0f0fu, zero, scale, pairs[2 * i], pairs[2 * i + 1]);
    }
  }
};

/// One of several formats: a warp asks which before it copies and before it widens.
template <int Lines, int Stages, class... Formats>
struct stored_lines<quantised::any_of<Formats...>, Lines, Stages> {
  using matrix_type = quantised::any_of<Formats...>;
  static constexpr bool exists = (stored_lines<Formats, Lines, Stages>::exists && ...);
  static constexpr bool shared_by_warps = (stored_lines<Formats, Lines, Stages>::shared_by_warps || ...);

 private:
  static constexpr int most(std::initializer_list<int> numbers) {
    int result = 0;
    for (int number : numbers) result = number > result ? number : result;
    return result;
  }
  template <int Number, class Format, class... Others>
  __device__ static void enqueue_as(std::uint32_t memory, matrix_type const& m, int expert, int row, int number,
                                    int half, int stage) {
    if constexpr (sizeof...(Others) > 0) {
      if (m.which != Number) return enqueue_as<Number + 1, Others...>(memory, m, expert, row, number, half, stage);
    }
    using lines = stored_lines<Format, Lines, Stages>;
    Format const& matrix = m.template as<Format>();
    if (lines::shared_by_warps || row < matrix.rows) lines::enqueue(memory, matrix, expert, row, number, half, stage);
  }
  template <class Element, int Number, class Format, class... Others>
  __device__ static void widen_as(std::uint32_t memory, matrix_type const& m, int expert, int row, int number, int half,
                                  int stage, std::uint32_t (&pairs)[16]) {
    if constexpr (sizeof...(Others) > 0) {
      if (m.which != Number)
        return widen_as<Element, Number + 1, Others...>(memory, m, expert, row, number, half, stage, pairs);
    }
    stored_lines<Format, Lines, Stages>::template widen<Element>(memory, m.template as<Format>(), expert, row, number,
                                                                 half, stage, pairs);
  }

 public:
  static constexpr int bytes = most({stored_lines<Formats, Lines, Stages>::bytes...});

  __device__ static void enqueue(std::uint32_t memory, matrix_type const& m, int expert, int row, int number, int half,
                                 int stage) {
    enqueue_as<0, Formats...>(memory, m, expert, row, number, half, stage);
  }
  template <class Element>
  __device__ static void widen(std::uint32_t memory, matrix_type const& m, int expert, int row, int number, int half,
                               int stage, std::uint32_t (&pairs)[16]) {
    widen_as<Element, 0, Formats...>(memory, m, expert, row, number, half, stage, pairs);
  }
};

}  // namespace switchyard::cuda
