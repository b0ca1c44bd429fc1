#pragma once

#include <switchyard/backend/cuda/block_sums.cuh>
#include <switchyard/backend/cuda/epilogue.cuh>
#include <switchyard/backend/cuda/half_rows.cuh>
#include <switchyard/backend/cuda/instructions.cuh>
#include <switchyard/backend/cuda/low_rank_terms.cuh>
#include <switchyard/backend/cuda/stored_lines.cuh>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/operand.hpp>
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

template <class Operand>
struct product_args;

/// What the kernels of a product are compiled for. Widths, experts and rows are arguments, so that layers which differ in
/// their shape share their kernels. `Args` are `product_args`, or `product_args_with_terms`.
template <class Operand, class Activation, bool Gated, class Args = product_args<Operand>>
struct product_in {
  using operand = Operand;
  using args = Args;
  using element = typename Operand::element;
  using activation = Activation;
  using result = element;
  static constexpr bool gathers = true, gated = Gated;
  static constexpr bool has_exponents =
      std::is_same_v<element, half>;  // of the rows between the products: half_rows.cuh
};
template <class Operand, class Args = product_args<Operand>>
struct product_out {
  using operand = Operand;
  using args = Args;
  using element = typename Operand::element;
  using result = summed_row<element>;
  static constexpr bool gathers = false, gated = false;
  static constexpr bool has_exponents = std::is_same_v<element, half>;
};

/// How a matrix in global memory is read.
enum class access {
  by_chunks,      ///< by 16 bytes of a row
  along_columns,  ///< element by element, neighbouring threads in neighbouring columns
  along_rows      ///< the same in neighbouring rows: a transposed matrix
};

/// A right factor. This one is restored while it is read.
template <class Operand>
struct product_weights {
  Operand operand;
};
/// This one stands in memory.
template <class Element>
struct product_weights<weight_view<Element>> {
  weight_view<Element> view;
  access reading;
};

/// One set of experts: the routed ones, or the shared one, which has no features where there is none. This is what does not depend on
/// how their weights are read.
template <class Element>
struct side_rows {
  int depth, features;
  Element const* rows;  ///< left factor, [rows, depth]
  std::int64_t row_stride;
  access reading;
  bias_view<Element> gate_bias, bias;  ///< null data: none
  void* result;                        ///< [rows, features] of the problem's results
  std::int64_t result_stride;          ///< a multiple of 16 bytes
  row_exponents exponents;             ///< of the rows between the products
};
template <class Operand>
struct product_side : side_rows<typename Operand::element> {
  product_weights<Operand> gate, weight;  ///< [matrices, features, depth]; `gate` only where the expert is gated
};

/// The rows of the experts of a launch, as the plan has placed them, all on the device: all experts of the layer, or some of them.
struct expert_rows {
  int count;                                            ///< experts of the launch
  std::int32_t const *begin = nullptr, *end = nullptr;  ///< [count]: the rows of each
  std::int32_t const* matrix_of = nullptr;  ///< [count], below `matrices`; null: expert e has the matrices e
  int matrices;                             ///< that the weights and biases of the routed experts are views of
  std::int64_t most;                        ///< rows that all of them have together, at most

  /// All experts of a plan.
  static expert_rows of_plan(std::int32_t const* offsets, int experts, std::int64_t most) {
    return {experts, offsets, offsets + 1, nullptr, experts, most};
  }
  __device__ int matrix(int expert) const { return matrix_of == nullptr ? expert : matrix_of[expert]; }
};

/// A shared expert's weights stand in memory, whatever the routed ones' do.
template <class Operand>
struct product_args {
  product_side<Operand> routed;
  product_side<weight_view<typename Operand::element>> shared;
  expert_rows experts;
  int top_k;
  std::int32_t const* pair_of;  ///< [rows]
  float const* weights;         ///< [tokens, top_k], factors of the routed experts' sums; null: none
  std::int64_t tokens;          ///< rows of the shared expert
  std::int64_t all_tokens = 0;  ///< of all devices that share a call out, and choose kernels as one; 0: `tokens`

  std::int64_t tokens_of_call() const { return all_tokens > 0 ? all_tokens : tokens; }
  __host__ __device__ side_rows<typename Operand::element> const& side(bool of_shared) const {
    return of_shared ? static_cast<side_rows<typename Operand::element> const&>(shared) : routed;
  }
};

/// The same where rows have terms of low rank beside their products.
template <class Operand>
struct product_args_with_terms : product_args<Operand> {
  low_rank_term<typename Operand::element> gate_term, term;
  std::int32_t const* tall_of;  ///< [rows], entries of the tall factors; -1: no term
};
template <class Problem>
inline constexpr bool has_terms =
    std::is_same_v<typename Problem::args, product_args_with_terms<typename Problem::operand>>;

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

/// Where the stages of one side of a product stand: rows and columns of each side by side. Columns are those of `Matrices` matrices.
template <class Operand, class Tile, int Matrices>
struct side_ring {
  static constexpr product_tile tile = Tile::tile;

 private:
  static constexpr int row_bytes = tile.rows * line_bytes, column_bytes = tile.columns * line_bytes;
  template <int Stages>
  using stored_with = stored_lines_of<Operand, tile.columns / Matrices, Stages - 1>;
  /// Stages of quantised weights that fit where dense ones would stand, and 2 KiB that the smallest multiprocessors have left.
  template <int Stages>
  static constexpr int fitting() {
    if constexpr (Stages < 2 || !stored_with<Stages>::exists) {
      return 0;
    } else if constexpr (Stages * row_bytes + 2 * column_bytes + Matrices * stored_with<Stages>::bytes <=
                         tile.stages * (row_bytes + column_bytes) + 2048) {
      return Stages;
    } else {
      return fitting<Stages - 1>();
    }
  }

 public:
  /// Whether quantised weights are widened on the way: rows then have a ring of their own, weights their bytes in another, and there are
  /// two stages of elements, the one that is multiplied and the next.
  static constexpr bool stores = fitting<tile.stages>() > 0;
  static constexpr int stages = stores ? fitting<tile.stages>() : tile.stages;
  using stored = stored_with<stages>;

  SWITCHYARD_HD static constexpr int rows_at(int step) {
    return step % stages * (row_bytes + (stores ? 0 : column_bytes));
  }
  SWITCHYARD_HD static constexpr int columns_at(int step) {
    return stores ? stages * row_bytes + step % 2 * column_bytes : rows_at(step) + row_bytes;
  }
  static constexpr int stored_at = stages * row_bytes + 2 * column_bytes;
  static constexpr int bytes = stores ? stored_at + Matrices * stored::bytes : stages * (row_bytes + column_bytes);
};

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
  // Eight more elements put the rows that a warp writes at once into different banks.
  static constexpr int result_pitch = (features + 8) * static_cast<int>(sizeof(staged));
  template <class Operand>
  using ring_of = side_ring<Operand, Tile, Problem::gated ? 2 : 1>;
  using dense_ring = ring_of<weight_view<typename Problem::element>>;
  using routed_ring = ring_of<typename Problem::operand>;
  static constexpr int ring_bytes = routed_ring::bytes > dense_ring::bytes ? routed_ring::bytes : dense_ring::bytes;
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

/// Writes 16 bytes of elements of a row of restored weights: at most `count` of them, then zeros.
template <class Operand>
__device__ void restore_chunk(char* to, Operand const& weights, int expert, int row, int column, int count) {
  using element = typename Operand::element;
  constexpr int size = chunk_bytes / static_cast<int>(sizeof(element)), granule = Operand::granule;
  constexpr int step = granule < size ? granule : size;
  if (count >= size) {
    float values[size];
#pragma unroll
    for (int i = 0; i < size; i += step) weights.read(expert, row, column + i, step, values + i);
    *reinterpret_cast<chunk*>(to) = from_floats<element>(values);
    return;
  }
  // At the end of a row one by one: so many as only the call knows would stand in local memory.
#pragma unroll 1
  for (int i = 0; i < size; ++i) {
    float value = 0.0f;
    if (i < count) weights.read(expert, row, column + i, 1, &value);
    reinterpret_cast<element*>(to)[i] = element(value);
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
  operand_lines() = default;  ///< of weights that are restored
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
  __device__ static void load(char* to, At const& at, std::int64_t column_stride, access reading, int first,
                              int depth) {
    bool const along_rows = reading == access::along_rows;
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

  /// The same from weights that are restored: of `rows` features from `first_row` on.
  template <class Operand>
  __device__ static void restore(char* to, Operand const& weights, int expert, int first_feature, int rows, int first,
                                 int depth) {
    for (int c = static_cast<int>(threadIdx.x); c < Lines * chunks; c += Threads) {
      int const row = c / chunks, line_chunk = c % chunks, begin = first + line_chunk * size;
      restore_chunk(to + swizzled(row, line_chunk), weights, expert, first_feature + row, begin,
                    row < rows ? depth - begin : 0);
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

/// The tile of a block: a matrix of -1 stands for none.
struct block_tile {
  bool shared;
  int matrix, first_feature;
  std::int64_t first_row;
  int rows;
};

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

/// Fills the stages of a tile.
template <class Layout, bool Gathers, bool Gated, class Operand>
class stage_filler {
  using element = typename Operand::element;
  static constexpr int line = line_bytes / static_cast<int>(sizeof(element));
  using left_lines = operand_lines<element, Layout::tile.rows, Layout::threads>;
  using right_lines = operand_lines<element, Layout::features, Layout::threads>;

 public:
  /// `tokens`: of the rows of a tile that gathers them, in shared memory.
  __device__ stage_filler(product_side<Operand> const& side, block_tile const& tile, std::int32_t const* tokens)
      : side_(side),
        tile_(tile),
        tokens_(tokens),
        left_([this](int r) { return left_row(r); }, side.rows),
        weight_(lines_of(side.weight)),
        gate_(Gated ? lines_of(side.gate) : weight_) {}

  __device__ void fill_rows(char* to, int step) const {
    int const first = step * line;
    if (side_.reading == access::by_chunks) {
      left_.enqueue(to, first, side_.depth);
    } else {
      left_.load(
          to, [this](int r) { return left_row(r); }, 1, side_.reading, first, side_.depth);
    }
  }
  __device__ void fill_columns(char* to, int step) const {
    fill_right(to + (Gated ? Layout::features * line_bytes : 0), weight_, side_.weight, step * line);
    if constexpr (Gated) fill_right(to, gate_, side_.gate, step * line);
  }

 private:
  __device__ element const* left_row(int r) const {
    if (r >= tile_.rows) return nullptr;
    std::int64_t const row = Gathers ? tokens_[r] : tile_.first_row + r;
    return side_.rows + row * side_.row_stride;
  }
  __device__ auto rows_of(product_weights<weight_view<element>> const& weights) const {
    return [&weights, matrix = tile_.matrix, first = tile_.first_feature,
            count = side_.features - tile_.first_feature](int f) -> element const* {
      weight_view<element> const& view = weights.view;
      std::int64_t const row = std::int64_t{first} + f;
      return f < count ? view.data + matrix * view.expert_stride + row * view.row_stride : nullptr;
    };
  }
  __device__ right_lines lines_of(product_weights<Operand> const& weights) const {
    if constexpr (Operand::in_place) {
      return right_lines(rows_of(weights), weights.view.data);
    } else {
      return right_lines();
    }
  }
  __device__ void fill_right(char* to, right_lines const& lines, product_weights<Operand> const& weights,
                             int first) const {
    if constexpr (Operand::in_place) {
      if (weights.reading == access::by_chunks) {
        lines.enqueue(to, first, side_.depth);
      } else {
        lines.load(to, rows_of(weights), weights.view.column_stride, weights.reading, first, side_.depth);
      }
    } else {
      lines.restore(to, weights.operand, tile_.matrix, tile_.first_feature, side_.features - tile_.first_feature, first,
                    side_.depth);
    }
  }

  product_side<Operand> const& side_;
  block_tile const& tile_;
  std::int32_t const* tokens_;
  left_lines left_;
  right_lines weight_, gate_;
};

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
