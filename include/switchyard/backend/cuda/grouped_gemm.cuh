#pragma once

#include <switchyard/backend/cuda/block_sums.cuh>
#include <switchyard/backend/cuda/epilogue.cuh>
#include <switchyard/backend/cuda/half_rows.cuh>
#include <switchyard/backend/cuda/instructions.cuh>
#include <switchyard/backend/cuda/low_rank_terms.cuh>
#include <switchyard/backend/cuda/product_args.cuh>
#include <switchyard/backend/cuda/product_stages.cuh>
#include <switchyard/core/divide_up.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

/// Step 3 of `backend::cuda`: the two products of every expert over its rows, on tensor cores.
///
/// A block computes one tile: some rows of one expert times some of its output features. Operands come through a ring of
/// stages in shared memory, 128 bytes of each row at a time. Rows past an expert's last are zeros in shared memory and
/// exist nowhere else.
namespace switchyard::cuda {
/// A warp's part of a stage: its rows times its columns. `a_line` and `b_line` are where this lane's lines of both begin.
template <class Element, int RowBlocks, int ColumnBlocks>
__device__ void multiply_stage(float (&sums)[RowBlocks][ColumnBlocks][4], std::uint32_t rows, std::uint32_t columns,
                               int a_line, int const (&b_line)[ColumnBlocks / 2]) {
#pragma unroll sizeof(Element) == 4 ? 2 : 4
  for (int part = 0; part < line_bytes / 32; ++part) {
    // Lines begin at multiples of 128 bytes, so the swizzle of the next 32 bytes is an exclusive or.
    auto const at = [&](std::uint32_t stage, int begin) {
      return (stage + static_cast<std::uint32_t>(begin)) ^ (part * 32u);
    };
    std::uint32_t a[RowBlocks][4], b[ColumnBlocks / 2][4];
#pragma unroll
    for (int i = 0; i < RowBlocks; ++i) load_matrices(a[i], at(rows, a_line) + i * 16u * line_bytes);
#pragma unroll
    for (int j = 0; j < ColumnBlocks / 2; ++j) load_matrices(b[j], at(columns, b_line[j]));
    if constexpr (sizeof(Element) == 2) {
#pragma unroll
      for (int i = 0; i < RowBlocks; ++i) {
#pragma unroll
        for (int j = 0; j < ColumnBlocks; ++j) {
          multiply(Element{}, sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < RowBlocks; ++i) {
        std::uint32_t high[4], low[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          tf32_parts const parts(a[i][r]);
          high[r] = parts.high;
          low[r] = parts.low;
        }
#pragma unroll
        for (int j = 0; j < ColumnBlocks; ++j) {
          tf32_parts const b0(b[j / 2][j % 2 * 2]), b1(b[j / 2][j % 2 * 2 + 1]);
          multiply_tf32(sums[i][j], low, b0.high, b1.high);
          multiply_tf32(sums[i][j], high, b0.low, b1.low);
          multiply_tf32(sums[i][j], high, b0.high, b1.high);
        }
      }
    }
  }
}

/// A tile of a routed expert's rows: an expert of -1 stands for none.
struct routed_tile {
  int expert;
  std::int64_t number;  ///< among the tiles of its expert
};

/// The tile at an index in the list of all tiles, expert after expert. Only the rows of the experts are known: every block
/// counts tiles for itself, which takes less time than a list in memory would. Called by all threads.
template <int Threads>
__device__ routed_tile find_tile(std::int32_t const* begin_row, std::int32_t const* end_row, int experts, int tile_rows,
                                 int column_tiles, std::int64_t index) {
  __shared__ routed_tile found;
  if (threadIdx.x == 0) found = {-1, 0};
  std::int64_t before = 0;
  for (int begin = 0; begin < experts && before <= index; begin += Threads) {
    int const e = begin + static_cast<int>(threadIdx.x);
    std::int32_t const tiles =
        e < experts ? static_cast<std::int32_t>(divide_up(end_row[e] - begin_row[e], tile_rows)) * column_tiles : 0;
    scanned const scan = scan_block<Threads>(tiles);
    std::int64_t const number = index - before - scan.before;
    if (number >= 0 && number < tiles) found = {e, number};
    before += scan.all;
  }
  __syncthreads();
  return found;
}

/// Tiles of the shared expert come first, for their number is known. Of an expert's tiles, those that read the same weights follow each
/// other. Called by all threads.
template <class Layout, class Operand>
__device__ __forceinline__ block_tile tile_of_block(product_args<Operand> const& args) {
  constexpr int tile_rows = Layout::tile.rows, features = Layout::features;
  auto const column_tiles = [](int count) { return static_cast<int>(divide_up(count, features)); };
  std::int64_t const shared_tiles = divide_up(args.tokens, tile_rows) * column_tiles(args.shared.features);
  block_tile tile{blockIdx.x < shared_tiles, 0, 0, 0, 0};
  std::int64_t end_row, row_tiles, number;
  if (tile.shared) {
    end_row = args.tokens;
    row_tiles = divide_up(args.tokens, tile_rows);
    number = blockIdx.x;
  } else {
    expert_rows const& experts = args.experts;
    routed_tile const found = find_tile<Layout::threads>(experts.begin, experts.end, experts.count, tile_rows,
                                                         column_tiles(args.routed.features), blockIdx.x - shared_tiles);
    tile.matrix = found.expert;
    if (found.expert < 0) return tile;
    tile.matrix = experts.matrix(found.expert);
    tile.first_row = experts.begin[found.expert];
    end_row = experts.end[found.expert];
    row_tiles = divide_up(end_row - tile.first_row, tile_rows);
    number = found.number;
  }
  tile.first_row += number % row_tiles * tile_rows;
  tile.first_feature = static_cast<int>(number / row_tiles) * features;
  tile.rows = static_cast<int>(end_row - tile.first_row < tile_rows ? end_row - tile.first_row : tile_rows);
  return tile;
}

/// What the second product multiplies a row's sums by, as a power of two, and each stage of rows before: half_rows.cuh.
template <class Layout>
class rescaled_rows {
 public:
  /// `scales` has room for the tile's rows. Called by all threads.
  __device__ rescaled_rows(row_exponents const& exponents, block_tile const& tile, int depth, std::int32_t* scales)
      : exponents_(exponents), tile_(tile), depth_(depth), scales_(scales), any_(*exponents.any != 0) {
    if (!any_) return;
    for (int r = static_cast<int>(threadIdx.x); r < tile.rows; r += Layout::threads) {
      scales[r] = largest_exponent(exponents, tile.first_row + r);
    }
    __syncthreads();
  }

  __device__ void rescale(char* stage, int step) const {
    if (!any_) return;
    constexpr int chunks = line_bytes / chunk_bytes, line = line_bytes / Layout::element_bytes;
    for (int c = static_cast<int>(threadIdx.x); c < tile_.rows * chunks; c += Layout::threads) {
      int const row = c / chunks, at = c % chunks, feature = step * line + at * 8;
      if (feature >= depth_) continue;
      rescale_chunk(stage + swizzled(row, at), scales_[row], exponents_.of(tile_.first_row + row, feature));
    }
    __syncthreads();
  }

  __device__ float of_row(int row) const { return any_ && row < tile_.rows ? power_of_two(scales_[row]) : 1.0f; }

 private:
  row_exponents const& exponents_;
  block_tile const& tile_;
  int depth_;
  std::int32_t* scales_;
  bool any_;
};
/// No row has an exponent.
struct rows_as_they_are {
  __device__ void rescale(char*, int) const {}
  __device__ float of_row(int) const { return 1.0f; }
};

/// Adds the terms of a warp's rows to its sums.
template <class Problem, class Rescaled, int RowBlocks, int ColumnBlocks>
__device__ __forceinline__ void add_terms(float (&sums)[RowBlocks][ColumnBlocks][4], typename Problem::args const& args,
                                          block_tile const& tile, Rescaled const& rescaled, int first_warp_row,
                                          int first_warp_feature) {
  int const lane = static_cast<int>(threadIdx.x) % 32;
  if constexpr (!Problem::gathers && Problem::has_exponents) {
#pragma unroll
    for (int i = 0; i < RowBlocks; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float const scale = rescaled.of_row(first_warp_row + 16 * i + 8 * h + lane / 4);
#pragma unroll
        for (int j = 0; j < ColumnBlocks; ++j) {
          sums[i][j][2 * h] *= scale;
          sums[i][j][2 * h + 1] *= scale;
        }
      }
    }
  }
  rows_with_terms const rows{args.tall_of, tile.first_row + first_warp_row, tile.rows - first_warp_row};
  int const first = tile.first_feature + first_warp_feature;
  constexpr int gate_blocks = Problem::gated ? ColumnBlocks / 2 : 0;
  if constexpr (Problem::gated) add_low_rank_terms<0, gate_blocks>(sums, args.gate_term, rows, first);
  add_low_rank_terms<gate_blocks, ColumnBlocks - gate_blocks>(sums, args.term, rows, first);
}

/// Puts the values of a tile where their rows begin in shared memory, from the sums of this thread's warp: lane l has columns 2 (l % 4)
/// and the next of rows l / 4 and l / 4 + 8 of each block.
template <class Problem, class Layout, class Rescaled, int RowBlocks, int ColumnBlocks>
__device__ __forceinline__ void put_values(float const (&sums)[RowBlocks][ColumnBlocks][4],
                                           side_rows<typename Problem::element> const& side, block_tile const& tile,
                                           float const* row_weights, Rescaled const& rescaled, int first_warp_row,
                                           int first_warp_feature, char* memory) {
  using staged = typename Layout::staged;
  constexpr int result_blocks = ColumnBlocks / (Problem::gated ? 2 : 1);
  int const lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int j = 0; j < result_blocks; ++j) {
    int const feature = first_warp_feature + j * 8 + lane % 4 * 2;
    float bias[2] = {}, gate_bias[2] = {};
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      int const column = tile.first_feature + feature + c;
      bias[c] = bias_of(side.bias, tile.matrix, column, side.features);
      if constexpr (Problem::gated) gate_bias[c] = bias_of(side.gate_bias, tile.matrix, column, side.features);
    }
#pragma unroll
    for (int i = 0; i < RowBlocks; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        int const row = first_warp_row + 16 * i + 8 * h + lane / 4;
        float const weight = row_weights != nullptr ? row_weights[row] : 1.0f;
        float values[2];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          // Gate blocks come before up blocks.
          float sum = sums[i][j + (Problem::gated ? result_blocks : 0)][2 * h + c];
          if constexpr (!Problem::gathers && Problem::has_exponents) sum *= rescaled.of_row(row);
          values[c] = finished<Problem, true>(weight, sums[i][j][2 * h + c], sum, gate_bias[c], bias[c]);
        }
        char* const to = memory + row * Layout::result_pitch + feature * static_cast<int>(sizeof(staged));
        if constexpr (sizeof(staged) == 2) {
          *reinterpret_cast<std::uint32_t*>(to) = pack(typename Problem::element{}, values[0], values[1]);
        } else {
          *reinterpret_cast<float2*>(to) = make_float2(values[0], values[1]);
        }
      }
    }
  }
}

/// Writes the rows of a tile from shared memory, by 16 bytes.
template <class Problem, class Layout>
__device__ __forceinline__ void write_rows(side_rows<typename Problem::element> const& side, block_tile const& tile,
                                           char const* memory) {
  using element = typename Problem::element;
  using result = typename Problem::result;
  using staged = typename Layout::staged;
  constexpr int size = chunk_bytes / static_cast<int>(sizeof(result)), row_chunks = Layout::features / size;
  for (int c = static_cast<int>(threadIdx.x); c < tile.rows * row_chunks; c += Layout::threads) {
    int const row = c / row_chunks, feature = c % row_chunks * size;
    // Rows are read by as many features as 16 bytes have of elements, also where they are floats.
    constexpr int together = chunk_bytes / static_cast<int>(sizeof(element));
    bool const exists = tile.first_feature + feature / together * together < side.features;
    char const* const from = memory + row * Layout::result_pitch + feature * static_cast<int>(sizeof(staged));
    chunk values;
    if constexpr (std::is_same_v<result, staged>) {
      values = *reinterpret_cast<chunk const*>(from);
    } else {
      float floats[size];
      to_floats<float>(reinterpret_cast<chunk const*>(from)[0], reinterpret_cast<float(&)[4]>(floats[0]));
      to_floats<float>(reinterpret_cast<chunk const*>(from)[1], reinterpret_cast<float(&)[4]>(floats[4]));
      bring_into_range(side.exponents, tile.first_row + row, tile.first_feature + feature, exists, floats);
      values = from_floats<element>(floats);
    }
    if (!exists) continue;
    result* const to = static_cast<result*>(side.result) + (tile.first_row + row) * side.result_stride;
    *reinterpret_cast<chunk*>(to + tile.first_feature + feature) = values;
  }
}

/// One tile of one side.
template <class Problem, class Tile, class Operand>
__device__ __forceinline__ void run_tile(typename Problem::args const& args, product_side<Operand> const& side,
                                         block_tile const& found) {
  using element = typename Problem::element;
  using layout = product_layout<Problem, Tile>;
  constexpr product_tile tile = Tile::tile;
  constexpr int threads = layout::threads, features = layout::features;
  constexpr int warp_rows = tile.rows / tile.row_warps, warp_columns = tile.columns / tile.column_warps;
  constexpr int row_blocks = warp_rows / 16, column_blocks = warp_columns / 8;
  constexpr int warp_features = warp_columns / (Problem::gated ? 2 : 1);
  constexpr bool rescales = !Problem::gathers && Problem::has_exponents;
  extern __shared__ __align__(128) char memory[];
  std::int32_t* const tokens = reinterpret_cast<std::int32_t*>(memory + layout::ring_bytes);
  int const thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;

  if constexpr (Problem::gathers) {
    for (int r = thread; r < found.rows; r += threads) {
      std::int64_t const row = found.first_row + r;
      tokens[r] = found.shared ? static_cast<std::int32_t>(row) : args.pair_of[row] / args.top_k;
    }
    __syncthreads();
  }
  stage_filler<layout, Problem::gathers, Problem::gated, Operand> const filler(side, found, tokens);

  int const first_warp_row = warp / tile.column_warps * warp_rows;
  int const first_warp_feature = warp % tile.column_warps * warp_features;
  // Where the lines begin that this lane names: of rows, and of each two blocks of 8 columns. Gate blocks come before up
  // blocks.
  int const a_line = swizzled(first_warp_row + lane % 16, lane / 16);
  int b_line[column_blocks / 2];
#pragma unroll
  for (int j = 0; j < column_blocks / 2; ++j) {
    int const block = 2 * j + lane / 16, gate_blocks = Problem::gated ? column_blocks / 2 : column_blocks;
    int const row = block / gate_blocks * features + first_warp_feature + block % gate_blocks * 8 + lane % 8;
    b_line[j] = swizzled(row, lane / 8 % 2);
  }

  using rescaled_type = std::conditional_t<rescales, rescaled_rows<layout>, rows_as_they_are>;
  auto const rescaled = [&] {
    if constexpr (rescales) {
      return rescaled_type(side.exponents, found, side.depth, tokens);
    } else {
      return rescaled_type{};
    }
  }();

  int const steps = static_cast<int>(divide_up(side.depth, line_bytes / static_cast<int>(sizeof(element))));
  float sums[row_blocks][column_blocks][4] = {};
  std::uint32_t const begin = shared_address(memory);
  using ring = typename layout::template ring_of<Operand>;
  if constexpr (ring::stores) {
    stored_weights<typename ring::stored, tile.columns, features, threads, Operand> const stored(
        side, found.matrix, found.first_feature, begin + ring::stored_at);
    // A stage becomes elements one step before it is multiplied, and makes room for the bytes of another: as many are under way as of
    // rows.
#pragma unroll 1
    for (int step = -ring::stages; step < steps; ++step) {
      if (step >= -1) {
        wait_for_copies<ring::stages - 2>();
        __syncthreads();
      }
      int const ahead = step + ring::stages - 1;
      if (ahead >= 0 && ahead < steps) filler.fill_rows(memory + ring::rows_at(ahead), ahead);
      if (step >= -1 && step + 1 < steps) stored.widen(begin + ring::columns_at(step + 1), step + 1);
      __syncwarp();
      if (ahead + 1 < steps) stored.enqueue(ahead + 1);
      commit_copies();
      if (step < 0) continue;
      rescaled.rescale(memory + ring::rows_at(step), step);
      multiply_stage<element>(sums, begin + ring::rows_at(step), begin + ring::columns_at(step), a_line, b_line);
    }
  } else {
    // Steps before the first one fill all stages but one: the code that fills is there once.
#pragma unroll 1
    for (int step = 1 - ring::stages; step < steps; ++step) {
      if (step >= 0) {
        wait_for_copies<ring::stages - 2>();
        __syncthreads();  // the stage has come for all, and the one to be filled next was read by all
      }
      int const ahead = step + ring::stages - 1;
      if (ahead < steps) {
        filler.fill_rows(memory + ring::rows_at(ahead), ahead);
        filler.fill_columns(memory + ring::columns_at(ahead), ahead);
      }
      commit_copies();
      if (step < 0) continue;
      rescaled.rescale(memory + ring::rows_at(step), step);
      multiply_stage<element>(sums, begin + ring::rows_at(step), begin + ring::columns_at(step), a_line, b_line);
    }
  }
  wait_for_copies<0>();
  __syncthreads();  // stages make room for the result

  // The rows' tokens are not needed any more, and make room for what multiplies the rows.
  float* const row_weights = reinterpret_cast<float*>(tokens);
  bool const weighs = Problem::gathers && !found.shared && args.weights != nullptr;
  if (weighs) {
    for (int r = thread; r < tile.rows; r += threads) {
      row_weights[r] = r < found.rows ? args.weights[args.pair_of[found.first_row + r]] : 1.0f;
    }
    __syncthreads();
  }
  float const* const weights = weighs ? row_weights : nullptr;
  if constexpr (has_terms<Problem>) {
    if (!found.shared) {
      add_terms<Problem>(sums, args, found, rescaled, first_warp_row, first_warp_feature);
      put_values<Problem, layout>(sums, side, found, weights, rows_as_they_are{}, first_warp_row, first_warp_feature,
                                  memory);
      __syncthreads();
      return write_rows<Problem, layout>(side, found, memory);
    }
  }
  put_values<Problem, layout>(sums, side, found, weights, rescaled, first_warp_row, first_warp_feature, memory);
  __syncthreads();
  write_rows<Problem, layout>(side, found, memory);
}

/// Blocks beyond the last tile find nothing to do: how many tiles there are is known on the device only.
///
/// tokens, by index --copies--> stages --tensor cores--> sums in registers --bias, activation--> shared memory --> result
template <class Problem, class Tile>
__global__ void __launch_bounds__(product_layout<Problem, Tile>::threads, product_layout<Problem, Tile>::blocks)
    product(typename Problem::args const args) {
  block_tile const tile = tile_of_block<product_layout<Problem, Tile>>(args);
  if (tile.matrix < 0) return;
  if constexpr (Problem::operand::in_place) {
    run_tile<Problem, Tile>(args, tile.shared ? args.shared : args.routed, tile);
  } else if (tile.shared) {
    run_tile<Problem, Tile>(args, args.shared, tile);
  } else {
    run_tile<Problem, Tile>(args, args.routed, tile);
  }
}

}  // namespace switchyard::cuda
