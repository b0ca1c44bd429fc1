#pragma once

#include <switchyard/backend/cuda/instructions.cuh>
#include <switchyard/backend/cuda/product_args.cuh>
#include <switchyard/backend/cuda/stored_weights.cuh>
#include <switchyard/core/operand.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

/// The stages of a product in shared memory: where they stand, and how they are filled.
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

/// The tile of a block: a matrix of -1 stands for none.
struct block_tile {
  bool shared;
  int matrix, first_feature;
  std::int64_t first_row;
  int rows;
};

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

}  // namespace switchyard::cuda
