#pragma once

#include <switchyard/backend/cuda/instructions.cuh>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/host_device.hpp>

#include <cuda_runtime.h>

#include <cstdint>

/// Quantised weights on their way to a stage of a product:
///
///   global memory --copies of whole sectors--> a ring of bytes for each line --registers--> elements in the stage
///
/// A line is a row of weights; a stage takes 64 of them. Two lanes of a warp, l and l + 16, have a line to themselves: they copy its bytes,
/// half of each sector of 32 bytes each, and widen 32 of its weights each, so that nobody else has to wait for them. Blocks of 17, 18 or
/// 34 bytes begin anywhere; a line's bytes are copied as a stream, each sector once, by 16 bytes, and shifted in registers.
namespace switchyard::cuda {

inline constexpr int stored_depth = 64;  ///< weights of a line that a stage takes

/// How the bytes of a line lie, in one format: `streams` of bytes that are read from front to back. Weights from `column` on, 32 of them, are
/// in bytes from `begin<Stream>(column)` on; what comes before `column`, a multiple of 64, is in those before `end<Stream>(column)`.
/// None: products read such weights one by one, as any operand.
template <class Format>
struct stored_line {
  static constexpr int streams = 0;
};

/// Where a stream of a line begins, and how many bytes it has.
struct byte_stream {
  std::uint8_t const* first;
  std::int64_t bytes;
};
template <class T>
__device__ byte_stream stream_of(T const* first, std::int64_t count) {
  return {reinterpret_cast<std::uint8_t const*>(first), count * static_cast<std::int64_t>(sizeof(T))};
}

/// One stream of a line in shared memory.
template <class Line, int Stream, int Stages>
struct byte_ring {
  static constexpr int sector = 32;

 private:
  static constexpr int window() {
    int most = 0;
    for (int stage = 0; stage < 16; ++stage) {  // 1024 weights, after which all formats begin anew
      int const begin = Line::template begin<Stream>(stage * stored_depth),
                end = Line::template end<Stream>((stage + Stages) * stored_depth);
      most = end - begin > most ? end - begin : most;
    }
    return most;
  }
  static constexpr int count_most_new() {
    int most = 0;
    for (int stage = 0; stage < 16; ++stage) {
      int const count =
          Line::template end<Stream>((stage + 1) * stored_depth) - Line::template end<Stream>(stage * stored_depth);
      most = count > most ? count : most;
    }
    return most / sector + 2;  // it may begin and end inside of a sector
  }

 public:
  static constexpr int bytes = (window() + 2 * (sector - 1)) / sector * sector;
  static constexpr int most_new = count_most_new();  // sectors of a stage
  static constexpr int pitch = bytes + chunk_bytes;  // puts neighbouring lines into different banks

  /// Copies what stage `stage` needs and the one before did not.
  __device__ static void enqueue(std::uint32_t ring, byte_stream const& from, int stage, int half) {
    unsigned const before_first = static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(from.first)) % sector;
    int const behind = static_cast<int>(before_first) + sector - 1;
    int const first = stage == 0 ? 0 : (Line::template end<Stream>(stage * stored_depth) + behind) / sector,
              last = (Line::template end<Stream>((stage + 1) * stored_depth) + behind) / sector;
    std::int64_t const end = from.bytes + before_first;
#pragma unroll
    for (int i = 0; i < most_new; ++i) {
      if (first + i >= last) break;
      // The ring begins with the 16 bytes that have the first one.
      int const offset = (first + i) * sector + half * chunk_bytes;
      int const place = offset - static_cast<int>(before_first / chunk_bytes * chunk_bytes);
      std::int64_t const rest = end - offset;
      if (place >= 0) {
        copy_async(ring + static_cast<unsigned>(place) % bytes, from.first - before_first + offset,
                   rest < 0             ? 0
                   : rest < chunk_bytes ? static_cast<int>(rest)
                                        : chunk_bytes);
      }
    }
  }

  /// `Count` bytes from an offset of the stream on, as words: what is behind them in the last word may be anything.
  template <int Count>
  __device__ static void read(std::uint32_t ring, byte_stream const& from, int offset,
                              std::uint32_t (&words)[(Count + 3) / 4]) {
    constexpr int pieces = (Count + 30) / 16, wanted = (Count + 3) / 4;
    unsigned const at = place_of(from, offset);
    unsigned const within = at % 16, first = at / 16 * 16 % bytes;
    std::uint32_t w[4 * pieces] = {};
#pragma unroll
    for (unsigned p = 0; p < pieces; ++p) {
      unsigned place = first + 16 * p;
      if (place >= bytes) place -= bytes;
      if (16 * p >= within + Count) break;
      chunk const loaded = load_shared(ring + place);
      w[4 * p] = loaded.x;
      w[4 * p + 1] = loaded.y;
      w[4 * p + 2] = loaded.z;
      w[4 * p + 3] = loaded.w;
    }
    if (Count % 16 != 0 || within != 0) {
#pragma unroll
      for (int i = 0; i + 2 < 4 * pieces && i < wanted + 2; ++i) w[i] = (within & 8u) != 0 ? w[i + 2] : w[i];
#pragma unroll
      for (int i = 0; i + 1 < 4 * pieces && i < wanted + 1; ++i) w[i] = (within & 4u) != 0 ? w[i + 1] : w[i];
#pragma unroll
      for (int i = 0; i < wanted; ++i) {
        w[i] = __funnelshift_r(w[i], i + 1 < 4 * pieces ? w[i + 1] : 0, within % 4 * 8);
      }
    }
#pragma unroll
    for (int i = 0; i < wanted; ++i) words[i] = w[i];
  }

  /// A value of one, two or four bytes, aligned to as many, in the lowest bits. By 16 bytes, for then neighbouring lines are in different
  /// banks.
  __device__ static std::uint32_t value(std::uint32_t ring, byte_stream const& from, int offset) {
    unsigned const at = place_of(from, offset);
    chunk const found = load_shared(ring + at / chunk_bytes * chunk_bytes % bytes);
    std::uint32_t const low = (at & 4u) != 0 ? found.y : found.x, high = (at & 4u) != 0 ? found.w : found.z;
    return ((at & 8u) != 0 ? high : low) >> at % 4 * 8;
  }

 private:
  /// Where a byte would stand in a ring without an end.
  __device__ static unsigned place_of(byte_stream const& from, int offset) {
    return static_cast<unsigned>(offset) +
           static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(from.first)) % chunk_bytes;
  }
};

/// The rings of a line of one format, for as many stages at once, of `Lines` lines.
template <class Format, int Lines, int Stages>
struct stored_lines {
  using line = stored_line<Format>;
  static constexpr bool exists = line::streams > 0;
  /// Whether warps widen what others have copied: they then meet before, and copy for lines that do not exist, too.
  static constexpr bool shared_by_warps = false;

 private:
  template <int Stream>
  SWITCHYARD_HD static constexpr int begin_of() {
    if constexpr (Stream == 0) {
      return 0;
    } else {
      return begin_of<Stream - 1>() + Lines * byte_ring<line, Stream - 1, Stages>::pitch;
    }
  }

 public:
  static constexpr int bytes = static_cast<int>(divide_up(begin_of<line::streams>(), 128)) * 128;

  template <int Stream>
  using ring = byte_ring<line, Stream, Stages>;
  template <int Stream>
  __device__ static std::uint32_t ring_of(std::uint32_t memory, int number) {
    constexpr int begin = begin_of<Stream>();
    return memory + static_cast<std::uint32_t>(begin + number * ring<Stream>::pitch);
  }

  /// Copies the bytes of a stage. `number` is the line's in the tile, `row` in the matrix, `half` which of its two lanes this is.
  template <int Stream = 0>
  __device__ static void enqueue(std::uint32_t memory, Format const& matrix, int expert, int row, int number, int half,
                                 int stage) {
    ring<Stream>::enqueue(ring_of<Stream>(memory, number), line::template stream<Stream>(matrix, expert, row), stage,
                          half);
    if constexpr (Stream + 1 < line::streams) {
      enqueue<Stream + 1>(memory, matrix, expert, row, number, half, stage);
    }
  }

  /// A line's 32 weights of a stage, `half` of it, as pairs of elements.
  template <class Element>
  __device__ static void widen(std::uint32_t memory, Format const& matrix, int expert, int row, int number, int half,
                               int stage, std::uint32_t (&pairs)[16]) {
    line::widen(Element{}, reader{memory, matrix, expert, row, number}, stage * stored_depth + 32 * half, pairs);
  }

 private:
  /// What a format's `widen` reads with.
  struct reader {
    std::uint32_t memory;
    Format const& matrix;
    int expert, row, number;

    template <int Stream, int Count>
    __device__ void read(int offset, std::uint32_t (&words)[(Count + 3) / 4]) const {
      ring<Stream>::template read<Count>(ring_of<Stream>(memory, number),
                                         line::template stream<Stream>(matrix, expert, row), offset, words);
    }
    template <int Stream>
    __device__ std::uint32_t value(int offset) const {
      return ring<Stream>::value(ring_of<Stream>(memory, number), line::template stream<Stream>(matrix, expert, row),
                                 offset);
    }
  };
};

}  // namespace switchyard::cuda
