#pragma once

#include <switchyard/backend/cuda/block_sums.cuh>
#include <switchyard/backend/cuda/product_args.cuh>
#include <switchyard/core/divide_up.hpp>

#include <cuda_runtime.h>

#include <cstdint>

/// Which tile a block works on next.
namespace switchyard::hopper {

using namespace cuda;

/// A tile of one block of a cluster.
struct grouped_tile {
  bool shared;             ///< of the shared expert
  bool alone;              ///< the cluster's tiles are not all of the same expert
  int matrix;              ///< of the weights that it has, 0 for the shared one
  int rows;                ///< 0: the block has none, and keeps the others company
  std::int64_t first_row;  ///< among the rows of the plan, or the tokens
  int column;              ///< number of the tile of columns
};

/// The tiles of a product. No tile has rows of two experts.
///
/// Every block makes the list for itself, in shared memory, from the rows of the experts that the plan has left on the device:
/// for every expert where its rows begin and end and its tiles of rows begin. Tiles of rows are taken by clusters, as many at once as
/// they have blocks. `Group` of these go with all columns, column by column, before the next ones: meanwhile their rows
/// and the weights of a few columns are all that is read. Clusters take indices in the list in turns.
template <int TileRows, int Cluster, int Group>
class tile_list {
 public:
  __host__ __device__ static constexpr int bytes(int experts) {
    return (3 * experts + 1) * static_cast<int>(sizeof(std::int32_t));
  }

  /// `memory`: `bytes(experts)` of shared memory. Called by all threads, which have to meet before they read the list.
  template <int Threads>
  __device__ static void make(std::int32_t* memory, expert_rows const& rows) {
    int const experts = rows.count;
    std::int32_t before = 0;
    for (int begin = 0; begin < experts; begin += Threads) {
      int const e = begin + static_cast<int>(threadIdx.x);
      std::int32_t const first = e < experts ? rows.begin[e] : 0, end = e < experts ? rows.end[e] : 0;
      scanned const scan = scan_block<Threads>(static_cast<std::int32_t>(divide_up(end - first, TileRows)));
      if (e < experts) {
        memory[e] = first;
        memory[experts + e] = end;
        memory[2 * experts + e] = before + scan.before;
      }
      before += scan.all;
    }
    if (threadIdx.x == 0) memory[3 * experts] = before;
  }

  /// `columns`: tiles of columns of routed experts, and of the shared one, which has a row for each token.
  __device__ tile_list(std::int32_t const* memory, expert_rows const& rows, int columns, int shared_columns,
                       std::int64_t tokens)
      : begin_(memory),
        end_(memory + rows.count),
        first_tile_(memory + 2 * rows.count),
        matrix_of_(rows.matrix_of),
        experts_(rows.count),
        columns_(columns),
        shared_columns_(shared_columns),
        tokens_(tokens) {}

  /// Indices in the list. Those of the shared expert come first.
  __device__ std::int64_t size() const {
    return shared_size() + divide_up(first_tile_[experts_], Cluster) * std::int64_t{columns_};
  }
  __device__ bool is_shared(std::int64_t index) const { return index < shared_size(); }

  /// The tile of a block of the cluster at a index. Called by whole warps.
  __device__ grouped_tile at(std::int64_t index, int cluster_rank) const {
    bool const shared = is_shared(index);
    std::int64_t const tiles = shared ? divide_up(tokens_, TileRows) : first_tile_[experts_];
    std::int64_t const clusters = divide_up(tiles, Cluster);
    int const columns = shared ? shared_columns_ : columns_;
    if (!shared) index -= shared_size();
    std::int64_t const group = index / (std::int64_t{Group} * columns) * Group;
    int const within = static_cast<int>(index - group * columns);
    int const together = static_cast<int>(clusters - group < Group ? clusters - group : Group);
    std::int64_t const first = (group + within % together) * Cluster;

    grouped_tile found{shared, false, 0, 0, 0, within / together};
    std::int64_t const mine = first + cluster_rank,
                       last = first + Cluster - 1 < tiles ? first + Cluster - 1 : tiles - 1;
    std::int64_t begin = 0, end = tokens_, number = mine;
    if (!shared) {
      // The number of experts whose tiles all come before: the expert of the tile. A block without a tile goes with the
      // last one.
      int const wanted = static_cast<int>(mine < tiles ? mine : last);
      int const expert = experts_before(wanted);
      std::int32_t const own = first_tile_[expert];
      found.alone = Cluster > 1 && (own > first || first_tile_[expert + 1] <= last);
      found.matrix = matrix_of_ == nullptr ? expert : matrix_of_[expert];
      number = mine - own;
      begin = begin_[expert];
      end = end_[expert];
    }
    found.first_row = begin + number * TileRows;
    std::int64_t const rows = end - found.first_row;
    found.rows = mine >= tiles || rows <= 0 ? 0 : rows < TileRows ? static_cast<int>(rows) : TileRows;
    return found;
  }

 private:
  __device__ std::int64_t shared_size() const {
    return shared_columns_ == 0 ? 0 : divide_up(divide_up(tokens_, TileRows), Cluster) * shared_columns_;
  }
  __device__ int experts_before(int tile) const {
    int const lane = static_cast<int>(threadIdx.x) % 32;
    int count = 0;
    for (int begin = 0; begin < experts_; begin += 32) {
      int const e = begin + lane;
      count += __popc(__ballot_sync(~0u, e < experts_ && first_tile_[e + 1] <= tile));
    }
    return count;
  }

  std::int32_t const *begin_, *end_, *first_tile_, *matrix_of_;
  int experts_, columns_, shared_columns_;
  std::int64_t tokens_;
};

}  // namespace switchyard::hopper
