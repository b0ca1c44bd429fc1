#pragma once

#include <switchyard/backend/cuda/block_scan.cuh>
#include <switchyard/backend/cuda/half_rows.cuh>
#include <switchyard/backend/cuda/instructions.cuh>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/view.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

/// Step 3 of `backend::cuda`: the two products of every expert over its rows, on tensor cores.
///
/// A block computes one tile: some rows of one expert times some of its output features. Operands come through a ring of
/// stages in shared memory, 128 bytes of each row at a time. Rows past an expert's last are zeros in shared memory and
/// exist nowhere else.
namespace switchyard::cuda {

/// How the product is cut into tiles, and a tile among warps. `columns` counts rows of the weights: half of them are gate
/// features where an expert is gated.
struct product_tile {
  int rows, columns;
  int row_warps, column_warps;
  int stages;
};

inline constexpr int line_bytes = 128;  // of each row in a stage

/// Few rows per expert: time goes into reading weights, so many small blocks with many reads under way.
struct few_rows {
  static constexpr product_tile tile{.rows = 16, .columns = 64, .row_warps = 1, .column_warps = 4, .stages = 6};
};
/// The tile in between.
struct some_rows {
  static constexpr product_tile tile{.rows = 64, .columns = 128, .row_warps = 2, .column_warps = 4, .stages = 4};
};
/// Many rows per expert. Three stages fit the 99 KiB that compute capability 8.6 and 8.9 have.
struct many_rows {
  static constexpr product_tile tile{.rows = 128, .columns = 128, .row_warps = 2, .column_warps = 4, .stages = 3};
};

/// What the kernels of a product are compiled for. Widths, experts and rows are arguments, so that layers which differ in
/// their shape share their kernels.
template <class Element, class Activation, bool Gated>
struct product_in {
  using element = Element;
  using activation = Activation;
  using result = Element;
  static constexpr bool gathers = true, gated = Gated;
  static constexpr bool has_exponents =
      std::is_same_v<Element, half>;  // of the rows between the products: half_rows.cuh
};
template <class Element>
struct product_out {
  using element = Element;
  using result = summed_row<Element>;
  static constexpr bool gathers = false, gated = false;
  static constexpr bool has_exponents = std::is_same_v<Element, half>;
};

/// How a matrix in global memory is read.
enum class access {
  by_chunks,      ///< by 16 bytes of a row
  along_columns,  ///< element by element, neighbouring threads in neighbouring columns
  along_rows      ///< the same in neighbouring rows: a transposed matrix
};

template <class Element>
struct product_weights {
  weight_view<Element> view;
  access how;
};

/// One set of experts: the routed ones, or the shared one, which has no features where there is none.
template <class Element>
struct product_side {
  int depth, features;
  Element const* rows;  ///< left factor, [rows, depth]
  std::int64_t row_stride;
  access how;
  product_weights<Element> gate, weight;  ///< [experts, features, depth]; `gate` only where the expert is gated
  bias_view<Element> gate_bias, bias;     ///< null data: none
  void* result;                           ///< [rows, features] of the problem's results
  std::int64_t result_stride;             ///< a multiple of 16 bytes
  row_exponents exponents;                ///< of the rows between the products
};

template <class Element>
struct product_args {
  product_side<Element> routed, shared;
  int experts, top_k;
  std::int32_t const* offsets;  ///< [experts + 1]
  std::int32_t const* pair_of;  ///< [rows]
  float const* weights;         ///< [tokens, top_k], factors of the routed experts' sums; null: none
  std::int64_t tokens;          ///< rows of the shared expert
};

/// Shared memory of a multiprocessor that the code is compiled for.
#if !defined(__CUDA_ARCH__)
inline constexpr int multiprocessor_shared_bytes = 100 * 1024;
#elif __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 870
inline constexpr int multiprocessor_shared_bytes = 164 * 1024;
#elif __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
inline constexpr int multiprocessor_shared_bytes = 228 * 1024;
#else
inline constexpr int multiprocessor_shared_bytes = 100 * 1024;
#endif

/// A tile of one side of the product in shared memory: the ring of stages, which the result takes over at the end, and
/// the rows' tokens.
template <class Problem, class Tile>
struct product_layout {
  static constexpr product_tile tile = Tile::tile;
  static constexpr int element_bytes = static_cast<int>(sizeof(typename Problem::element));
  // In shared memory, results of half elements are floats: some are beyond half's range.
  using staged = summed_row<typename Problem::element>;
  static constexpr int threads = tile.row_warps * tile.column_warps * 32;
  static constexpr int features = tile.columns / (Problem::gated ? 2 : 1);  // of the result
  static constexpr int stage_bytes = (tile.rows + tile.columns) * line_bytes;
  // Eight more elements put the rows that a warp writes at once into different banks.
  static constexpr int result_pitch = (features + 8) * static_cast<int>(sizeof(staged));
  static constexpr int ring_bytes = tile.stages * stage_bytes;
  static constexpr std::size_t shared_bytes = ring_bytes + tile.rows * sizeof(std::int32_t);
  static_assert(tile.rows * result_pitch <= ring_bytes);
  // Blocks that share a multiprocessor. Said, because the compiler else saves registers for more, and spills.
  static constexpr int fitting = multiprocessor_shared_bytes / static_cast<int>(shared_bytes + 1024);
  static constexpr int blocks = fitting < 1 || (element_bytes == 4 && threads == 256) ? 1 : fitting;
};

/// Where 16 bytes of a stage's line stand: swizzled, so that eight rows of one column lie in different banks.
__device__ inline int swizzled(int row, int chunk_index) {
  return row * line_bytes + ((chunk_index ^ (row & 7)) * chunk_bytes);
}

/// A warp's part of a stage: its rows times its columns. `a_line` and `b_line` are where this lane's lines of both begin.
template <class Element, int RowBlocks, int ColumnBlocks>
__device__ void multiply_stage(float (&sums)[RowBlocks][ColumnBlocks][4], std::uint32_t stage, int a_line,
                               int const (&b_line)[ColumnBlocks / 2]) {
#pragma unroll sizeof(Element) == 4 ? 2 : 4
  for (int part = 0; part < line_bytes / 32; ++part) {
    // Lines begin at multiples of 128 bytes, so the swizzle of the next 32 bytes is an exclusive or.
    auto const at = [&](int begin) { return (stage + static_cast<std::uint32_t>(begin)) ^ (part * 32u); };
    std::uint32_t a[RowBlocks][4], b[ColumnBlocks / 2][4];
#pragma unroll
    for (int i = 0; i < RowBlocks; ++i) load_matrices(a[i], at(a_line) + i * 16u * line_bytes);
#pragma unroll
    for (int j = 0; j < ColumnBlocks / 2; ++j) load_matrices(b[j], at(b_line[j]));
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

/// One operand of a tile: `Lines` rows, of which every stage takes 128 bytes.
template <class Element, int Lines, int Threads>
class operand_lines {
  static constexpr int size = chunk_bytes / static_cast<int>(sizeof(Element)), chunks = line_bytes / chunk_bytes;
  static constexpr int copies = Lines * chunks / Threads, rows_apart = Threads / chunks;
  static_assert(copies >= 1 && Lines * chunks % Threads == 0 && rows_apart % 8 == 0,
                "threads have the same number of copies, and the same swizzle in all");

 public:
  /// `at(row)` is a row's first element, null for a row of zeros; `anywhere` may be named without being read.
  template <class At>
  __device__ operand_lines(At const& at, Element const* anywhere) {
    for (int i = 0; i < copies; ++i) copies_.set(i, at(first_row() + i * rows_apart), column(), anywhere);
  }

  /// Fills a stage with elements from `first` on, by copies of 16 bytes.
  __device__ void enqueue(char* to, int first, int depth) const {
    copies_.enqueue(shared_address(to) + static_cast<std::uint32_t>(swizzled(first_row(), column() / size)),
                    rows_apart * line_bytes, first, depth - first - column());
  }

  /// The same from rows with any strides: neighbouring threads take what is closer together.
  template <class At>
  __device__ static void load(char* to, At const& at, std::int64_t column_stride, access how, int first, int depth) {
    bool const along_rows = how == access::along_rows;
    for (int c = static_cast<int>(threadIdx.x); c < Lines * chunks; c += Threads) {
      int const row = along_rows ? c % Lines : c / chunks, line_chunk = along_rows ? c / Lines : c % chunks;
      int const begin = first + line_chunk * size;
      Element const* const from = at(row);
      int const count = from == nullptr ? 0 : depth - begin;
      alignas(16) Element values[size];
#pragma unroll
      for (int i = 0; i < size; ++i) values[i] = i < count ? from[(begin + i) * column_stride] : Element(0.0f);
      *reinterpret_cast<chunk*>(to + swizzled(row, line_chunk)) = *reinterpret_cast<chunk const*>(values);
    }
  }

 private:
  __device__ static int first_row() { return static_cast<int>(threadIdx.x) / chunks; }
  __device__ static int column() { return static_cast<int>(threadIdx.x) % chunks * size; }

  row_copies<Element, copies> copies_;
};

/// A tile of a routed expert's rows: an expert of -1 stands for none.
struct routed_tile {
  int expert;
  std::int64_t number;  ///< among the tiles of its expert
};

/// The tile at a place in the list of all tiles, expert after expert. Only the rows of the experts are known: every block
/// counts tiles for itself, which takes less time than a list in memory would. Called by all threads.
template <int Threads>
__device__ routed_tile find_tile(std::int32_t const* offsets, int experts, int tile_rows, int column_tiles,
                                 std::int64_t place) {
  __shared__ routed_tile found;
  if (threadIdx.x == 0) found = {-1, 0};
  std::int64_t before = 0;
  for (int begin = 0; begin < experts && before <= place; begin += Threads) {
    int const e = begin + static_cast<int>(threadIdx.x);
    std::int32_t const tiles =
        e < experts ? static_cast<std::int32_t>(divide_up(offsets[e + 1] - offsets[e], tile_rows)) * column_tiles : 0;
    scanned const scan = scan_block<Threads>(tiles);
    std::int64_t const number = place - before - scan.before;
    if (number >= 0 && number < tiles) found = {e, number};
    before += scan.all;
  }
  __syncthreads();
  return found;
}

/// Blocks beyond the last tile find nothing to do: how many tiles there are is known on the device only. Tiles of the
/// shared expert come first, for their number is known. Of an expert's tiles, those that read the same weights follow
/// each other.
///
/// tokens, by index --copies--> stages --tensor cores--> sums in registers --bias, activation--> shared memory --> result
template <class Problem, class Tile>
__global__ void __launch_bounds__(product_layout<Problem, Tile>::threads, product_layout<Problem, Tile>::blocks)
    product(product_args<typename Problem::element> const args) {
  using element = typename Problem::element;
  using layout = product_layout<Problem, Tile>;
  using staged = typename layout::staged;
  constexpr product_tile tile = Tile::tile;
  constexpr int threads = layout::threads, features = layout::features;
  constexpr int warp_rows = tile.rows / tile.row_warps, warp_columns = tile.columns / tile.column_warps;
  constexpr int row_blocks = warp_rows / 16, column_blocks = warp_columns / 8;
  constexpr int warp_features = warp_columns / (Problem::gated ? 2 : 1);
  constexpr int line = line_bytes / static_cast<int>(sizeof(element));
  extern __shared__ __align__(128) char memory[];
  std::int32_t* const tokens = reinterpret_cast<std::int32_t*>(memory + layout::ring_bytes);
  int const thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;

  // Which tile this is.
  auto const column_tiles = [](int count) { return static_cast<int>(divide_up(count, features)); };
  std::int64_t const shared_tiles = divide_up(args.tokens, tile.rows) * column_tiles(args.shared.features);
  bool const shared = blockIdx.x < shared_tiles;
  product_side<element> const& side = shared ? args.shared : args.routed;
  int expert = 0, first_feature;
  std::int64_t first_row, end_row;
  if (shared) {
    std::int64_t const row_tiles = divide_up(args.tokens, tile.rows);
    first_row = blockIdx.x % row_tiles * tile.rows;
    end_row = args.tokens;
    first_feature = static_cast<int>(blockIdx.x / row_tiles) * features;
  } else {
    std::int64_t const index = blockIdx.x - shared_tiles;
    routed_tile const found =
        find_tile<threads>(args.offsets, args.experts, tile.rows, column_tiles(args.routed.features), index);
    if (found.expert < 0) return;
    expert = found.expert;
    first_row = args.offsets[expert];
    end_row = args.offsets[expert + 1];
    std::int64_t const row_tiles = divide_up(end_row - first_row, tile.rows);
    first_row += found.number % row_tiles * tile.rows;
    first_feature = static_cast<int>(found.number / row_tiles) * features;
  }
  int const depth = side.depth, all_features = side.features;
  int const rows = static_cast<int>(end_row - first_row < tile.rows ? end_row - first_row : tile.rows);

  if constexpr (Problem::gathers) {
    for (int r = thread; r < rows; r += threads) {
      std::int64_t const row = first_row + r;
      tokens[r] = shared ? static_cast<std::int32_t>(row) : args.pair_of[row] / args.top_k;
    }
    __syncthreads();
  }

  auto const left_row = [&](int r) -> element const* {
    if (r >= rows) return nullptr;
    std::int64_t const row = Problem::gathers ? tokens[r] : first_row + r;
    return side.rows + row * side.row_stride;
  };
  auto const row_of = [&](product_weights<element> const& weights) {
    return [&weights, expert, first_feature, count = all_features - first_feature](int f) -> element const* {
      weight_view<element> const& view = weights.view;
      std::int64_t const row = std::int64_t{first_feature} + f;
      return f < count ? view.data + expert * view.expert_stride + row * view.row_stride : nullptr;
    };
  };
  using right_lines = operand_lines<element, features, threads>;
  operand_lines<element, tile.rows, threads> const left(left_row, side.rows);
  right_lines const weight(row_of(side.weight), side.weight.view.data);
  right_lines const gate = Problem::gated ? right_lines(row_of(side.gate), side.gate.view.data) : weight;
  auto const load_stage = [&](int step) {
    char* const to = memory + step % tile.stages * layout::stage_bytes;
    char* const to_gate = to + tile.rows * line_bytes;
    char* const to_weight = to_gate + (Problem::gated ? features * line_bytes : 0);
    int const first = step * line;
    if (side.how == access::by_chunks) {
      left.enqueue(to, first, depth);
    } else {
      left.load(to, left_row, 1, side.how, first, depth);
    }
    if (side.weight.how == access::by_chunks) {
      weight.enqueue(to_weight, first, depth);
    } else {
      weight.load(to_weight, row_of(side.weight), side.weight.view.column_stride, side.weight.how, first, depth);
    }
    if constexpr (Problem::gated) {
      if (side.gate.how == access::by_chunks) {
        gate.enqueue(to_gate, first, depth);
      } else {
        gate.load(to_gate, row_of(side.gate), side.gate.view.column_stride, side.gate.how, first, depth);
      }
    }
  };

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
    b_line[j] = tile.rows * line_bytes + swizzled(row, lane / 8 % 2);
  }

  // What the second product multiplies a row's sums by, as a power of two.
  std::int32_t* const row_scales = tokens;
  bool rescales = false;
  if constexpr (!Problem::gathers && Problem::has_exponents) {
    rescales = *side.exponents.any != 0;
    if (rescales) {
      for (int r = thread; r < rows; r += threads) row_scales[r] = largest_exponent(side.exponents, first_row + r);
      __syncthreads();
    }
  }
  auto const rescale_stage = [&](int step) {
    for (int c = thread; c < rows * (line_bytes / chunk_bytes); c += threads) {
      int const row = c / (line_bytes / chunk_bytes), at = c % (line_bytes / chunk_bytes),
                feature = step * line + at * 8;
      if (feature >= depth) continue;
      rescale_chunk(memory + step % tile.stages * layout::stage_bytes + swizzled(row, at), row_scales[row],
                    side.exponents.of(first_row + row, feature));
    }
    __syncthreads();
  };

  int const steps = static_cast<int>(divide_up(depth, line));
  float sums[row_blocks][column_blocks][4] = {};
  std::uint32_t const ring = shared_address(memory);
  // Steps before the first one fill all stages but one: the code of `load_stage` is there once.
#pragma unroll 1
  for (int step = 1 - tile.stages; step < steps; ++step) {
    if (step >= 0) {
      wait_for_copies<tile.stages - 2>();
      __syncthreads();  // the stage has come for all, and the one to be filled next was read by all
    }
    if (step + tile.stages - 1 < steps) load_stage(step + tile.stages - 1);
    commit_copies();
    if constexpr (!Problem::gathers && Problem::has_exponents) {
      if (rescales && step >= 0) rescale_stage(step);
    }
    if (step >= 0) multiply_stage<element>(sums, ring + step % tile.stages * layout::stage_bytes, a_line, b_line);
  }
  wait_for_copies<0>();
  __syncthreads();  // stages make room for the result

  // Lane l has columns 2 (l % 4) and the next of rows l / 4 and l / 4 + 8 of each block.
  constexpr int pitch = layout::result_pitch;
  auto const bias_at = [&](bias_view<element> const& bias, int feature) {
    bool const has = bias.data != nullptr && feature < all_features;
    return has ? static_cast<float>(bias.data[expert * bias.expert_stride + feature * bias.stride]) : 0.0f;
  };
  constexpr int result_blocks = warp_features / 8;
  bool const weighs = !shared && args.weights != nullptr;
  // The rows' tokens are not needed any more, and make room for what multiplies the rows.
  float* const row_weights = reinterpret_cast<float*>(tokens);
  if (Problem::gathers && weighs) {
    for (int r = thread; r < tile.rows; r += threads) {
      row_weights[r] = r < rows ? args.weights[args.pair_of[first_row + r]] : 1.0f;
    }
    __syncthreads();
  }
#pragma unroll
  for (int j = 0; j < result_blocks; ++j) {
    int const feature = first_warp_feature + j * 8 + lane % 4 * 2;
    float bias[2] = {}, gate_bias[2] = {};
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      bias[c] = bias_at(side.bias, first_feature + feature + c);
      if constexpr (Problem::gated) gate_bias[c] = bias_at(side.gate_bias, first_feature + feature + c);
    }
#pragma unroll
    for (int i = 0; i < row_blocks; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        int const row = first_warp_row + 16 * i + 8 * h + lane / 4;
        // W (w x) = w (W x): the weight multiplies before the bias.
        float const weight = Problem::gathers && weighs ? row_weights[row] : 1.0f;
        float values[2];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float const sum = sums[i][j][2 * h + c];
          if constexpr (!Problem::gathers && Problem::has_exponents) {
            values[c] = (rescales && row < rows ? sum * power_of_two(row_scales[row]) : sum) + bias[c];
          } else if constexpr (!Problem::gathers) {
            values[c] = sum + bias[c];
          } else if constexpr (Problem::gated) {
            values[c] = Problem::activation::apply(weight * sum + gate_bias[c],
                                                   weight * sums[i][j + result_blocks][2 * h + c] + bias[c]);
          } else {
            values[c] = Problem::activation::apply(weight * sum + bias[c]);
          }
        }
        char* const to = memory + row * pitch + feature * static_cast<int>(sizeof(staged));
        if constexpr (sizeof(staged) == 2) {
          *reinterpret_cast<std::uint32_t*>(to) = pack(element{}, values[0], values[1]);
        } else {
          *reinterpret_cast<float2*>(to) = make_float2(values[0], values[1]);
        }
      }
    }
  }
  __syncthreads();
  using result = typename Problem::result;
  constexpr int size = chunk_bytes / static_cast<int>(sizeof(result)), row_chunks = features / size;
  for (int c = thread; c < rows * row_chunks; c += threads) {
    int const row = c / row_chunks, feature = c % row_chunks * size;
    // Rows are read by as many features as 16 bytes have of elements, also where they are floats.
    constexpr int together = chunk_bytes / static_cast<int>(sizeof(element));
    bool const exists = first_feature + feature / together * together < all_features;
    char const* const from = memory + row * pitch + feature * static_cast<int>(sizeof(staged));
    chunk values;
    if constexpr (std::is_same_v<result, staged>) {
      values = *reinterpret_cast<chunk const*>(from);
    } else {
      float floats[size];
      to_floats<float>(reinterpret_cast<chunk const*>(from)[0], reinterpret_cast<float(&)[4]>(floats[0]));
      to_floats<float>(reinterpret_cast<chunk const*>(from)[1], reinterpret_cast<float(&)[4]>(floats[4]));
      int const exponent = write_exponent(side.exponents, first_row + row, first_feature + feature, exists, floats);
      if (exponent != 0) {
#pragma unroll
        for (float& value : floats) value *= power_of_two(-exponent);
      }
      values = from_floats<element>(floats);
    }
    if (!exists) continue;
    result* const to = static_cast<result*>(side.result) + (first_row + row) * side.result_stride;
    *reinterpret_cast<chunk*>(to + first_feature + feature) = values;
  }
}

}  // namespace switchyard::cuda
