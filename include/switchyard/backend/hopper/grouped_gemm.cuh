#pragma once

#include <switchyard/backend/cuda/epilogue.cuh>
#include <switchyard/backend/cuda/instructions.cuh>
#include <switchyard/backend/cuda/launch.cuh>
#include <switchyard/backend/cuda/product_args.cuh>
#include <switchyard/backend/cuda/product_stages.cuh>
#include <switchyard/backend/hopper/fp8.cuh>
#include <switchyard/backend/hopper/mbarrier.cuh>
#include <switchyard/backend/hopper/scheduler.cuh>
#include <switchyard/backend/hopper/tma.cuh>
#include <switchyard/backend/hopper/tuning.cuh>
#include <switchyard/backend/hopper/wgmma.cuh>
#include <switchyard/core/divide_up.hpp>

#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

/// Step 3 of `backend::hopper`: the two products of every expert over its rows.
///
/// One block per multiprocessor works through a list of tiles. Its first warpgroup brings operands into a ring of stages,
/// a piece of 64 of the depth each: weights by the tensor memory accelerator, rows by copies of 16 bytes, for those of
/// the first product stand wherever their tokens do. Two more warpgroups multiply, and store results from registers.
namespace switchyard::hopper {

using namespace cuda;

/// A tile as a type, so that a kernel depends on what it uses alone. Of quantised weights that are widened on the way the bytes of
/// `StoredStages` stages are under way, in `StoredBytes` of memory of their own, which scales of E4M3 have else.
template <int Rows, int Columns, int Stages, hopper_schedule Schedule, int Cluster, int Group, int StoredStages = 0,
          int StoredBytes = 0>
struct grouped_tiling {
  static constexpr int rows = Rows, columns = Columns, stages = Stages, cluster = Cluster, group = Group;
  static constexpr bool cooperative = Schedule == hopper_schedule::cooperative;
  static constexpr int threads = 3 * 128;  // one warpgroup brings, two multiply
  static constexpr int row_groups =
      Rows / (cooperative ? 128 : 64);  // of 64 rows, that one warpgroup multiplies at once
  static constexpr int row_bytes = Rows * line_bytes, column_bytes = Columns * line_bytes;
  static constexpr int stage_bytes = row_bytes + column_bytes;
  static constexpr int stored_stages = StoredStages, stored_bytes = StoredBytes;
  using tiles = tile_list<Rows, Cluster, Group>;

  // Registers of a thread that brings, and of one that multiplies. One that widens, or copies scales, needs more.
  static constexpr int few_registers = StoredBytes > 0 ? 88 : 56, many_registers = StoredBytes > 0 ? 208 : 224;

  static_assert(Rows == 64 * row_groups * (cooperative ? 2 : 1) && (row_groups == 1 || row_groups == 2),
                "switchyard: a hopper_tile has 128 or 256 rows with hopper_schedule::cooperative, 64 or 128 with "
                "ping_pong. Set rows to one of them.");
  static_assert(Columns == 64 || Columns == 128 || Columns == 192 || Columns == 256,
                "switchyard: a hopper_tile has 64, 128, 192 or 256 columns. Set columns to one of them.");
  static_assert(row_groups * Columns <= 384,
                "switchyard: the sums of this hopper_tile have no room in registers. Lower rows or columns, so that a "
                "warpgroup has at most 64 x 256 or 128 x 192 of them.");
  static_assert(Cluster == 1 || Cluster == 2, "switchyard: a hopper_tile has a cluster of 1 or 2 blocks.");
  // A stage is released when the next one is multiplied.
  static_assert(Stages >= 2,
                "switchyard: a hopper_tile needs at least 2 stages. Lower rows or columns, so that they fit.");
  static_assert(Group >= 1, "switchyard: hopper_tile::group is at least 1.");

  /// The ring, which begins at a multiple of 1024 bytes, then the barriers, bytes of weights, the list of tiles, and exponents of rows.
  static constexpr std::size_t shared_bytes(int experts) {
    return 1024 + Stages * (stage_bytes + 2 * sizeof(std::uint64_t)) + StoredBytes + tiles::bytes(experts) +
           scale_bytes;
  }
  static constexpr int scale_bytes = 2 * 64 * row_groups;  // an exponent of each row that a warpgroup multiplies
};

/// How the right factor stands in memory; one that is restored counts as `depth`.
enum class weight_order {
  depth,         ///< input features have no gaps, as in checkpoints of linear layers
  feature,       ///< output features have none: a transposed matrix
  feature_pairs  ///< the same, and gate and up features take turns (gpt-oss)
};

/// What the kernel reads and writes; maps first, which have to stand at multiples of 64 bytes.
template <class Operand>
struct grouped_args {
  CUtensorMap routed[2], shared[2];  ///< gate and weight where an expert is gated and they are apart, else weight
  product_args<Operand> product;
};

/// The ring of stages, and where in it somebody is.
template <class Tiling>
class stage_ring {
 public:
  __device__ explicit stage_ring(std::uint32_t memory) : memory_(memory) {}

  __device__ void make_barriers(int full_arrivals, int empty_arrivals) const {
    for (int s = 0; s < Tiling::stages; ++s) {
      init_barrier(full(s), full_arrivals);
      init_barrier(empty(s), empty_arrivals);
    }
  }

  __device__ std::uint32_t rows() const { return memory_ + stage_ * Tiling::stage_bytes; }
  __device__ std::uint32_t columns() const { return rows() + Tiling::row_bytes; }
  __device__ std::uint32_t full() const { return full(stage_); }
  __device__ int stage() const { return stage_; }
  __device__ std::uint32_t full(int stage) const { return barriers() + stage * 8u; }
  __device__ std::uint32_t empty(int stage) const { return barriers() + (Tiling::stages + stage) * 8u; }

  __device__ void wait_until_full() const { wait_for_phase(full(stage_), parity_); }
  __device__ void wait_until_empty() const { wait_for_phase(empty(stage_), parity_ ^ 1u); }

  __device__ std::uint32_t stored() const { return barriers() + Tiling::stages * 2 * 8u; }

  __device__ void advance() {
    if (++stage_ == Tiling::stages) {
      stage_ = 0;
      parity_ ^= 1u;
    }
  }
  __device__ void skip(int steps) {
    int const to = stage_ + steps;
    parity_ ^= static_cast<std::uint32_t>(to / Tiling::stages) & 1u;
    stage_ = to % Tiling::stages;
  }

 private:
  __device__ std::uint32_t barriers() const { return memory_ + Tiling::stages * Tiling::stage_bytes; }

  std::uint32_t memory_;
  int stage_ = 0;
  std::uint32_t parity_ = 0;
};

/// Of four words in each of four neighbouring lanes, the lane i then has the i-th ones, in the order of lanes.
__device__ inline void transpose_among_four(std::uint32_t (&words)[4]) {
  int const lane = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int distance = 1; distance <= 2; distance *= 2) {
    bool const upper = (lane & distance) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & distance) != 0) continue;
      std::uint32_t const sent = upper ? words[i] : words[i | distance];
      std::uint32_t const got = __shfl_xor_sync(~0u, sent, distance);
      (upper ? words[i] : words[i | distance]) = got;
    }
  }
}

/// What stands for quantised weights, or scales, that are none.
struct nothing_stored {
  template <class Side, class... Others>
  __device__ explicit nothing_stored(Side const&, Others const&...) {}
};

/// One product of all tiles. `Adjusted`: sums may be multiplied by combine weights or have a bias. Where they never do, that
/// costs nothing: a compiler may not leave out 1 * x + 0.
template <class Problem, bool Adjusted, class Tiling, weight_order Order>
struct persistent_block {
  using operand = typename Problem::operand;
  using element = typename Problem::element;
  static constexpr bool fp8 = multiplies_fp8<Problem>;
  using factor = std::conditional_t<fp8, std::uint8_t, element>;  // what is multiplied
  using tiles = typename Tiling::tiles;
  static constexpr int depth_of_stage = line_bytes / static_cast<int>(sizeof(factor));
  static constexpr lines_along lines = Order == weight_order::depth ? lines_along::depth : lines_along::features;
  static constexpr bool pairs = Order == weight_order::feature_pairs;
  static constexpr bool reads_exponents = Problem::has_exponents && !Problem::gathers && !fp8;
  static constexpr bool apart = Problem::gated && !pairs;  // gate and up features fill one half of the columns each
  static constexpr int features = Tiling::columns / (Problem::gated ? 2 : 1);  // of a tile of the result
  static constexpr int multiplying_groups = Tiling::cooperative ? 2 : 1;       // at one tile

  static_assert(
      features % 32 == 0 && (lines == lines_along::depth || Tiling::columns / (apart ? 2 : 1) % 64 == 0),
      "switchyard: this hopper_tile has too few columns, or a number of them that stored weights cannot be cut "
      "into. Use 128 or 256 where experts are gated, 64, 128, 192 or 256 elsewhere.");
  static_assert(!fp8 || (Tiling::row_groups == 1 && Tiling::columns <= 128),
                "switchyard: with quantised_products::tokens_in_fp8 a hopper_tile has at most 128 columns, and 64 rows "
                "for a warpgroup, for each sum takes two registers. Take the tile of switchyard::tokens_in_fp8.");

  /// Tiles of columns, and stages that one tile takes.
  __host__ __device__ static constexpr int column_tiles(side_rows<element> const& side) {
    return static_cast<int>(divide_up(side.features, features));
  }
  __host__ __device__ static constexpr int steps(side_rows<element> const& side) {
    return static_cast<int>(divide_up(side.depth, depth_of_stage));
  }

  /// What one copy of weights brings. Half of a stage is brought by each block of the cluster, if they need the same.
  static constexpr std::uint32_t box[2] = {depth_of_stage, lines == lines_along::depth ? Tiling::columns / 2u : 32u};

  /// Weights of a stage: both halves, or the one of this block for all.
  __device__ static void copy_weights(CUtensorMap const (&maps)[2], grouped_tile const& tile, int step,
                                      int cluster_rank, std::uint32_t to, std::uint32_t barrier) {
    for (int half = 0; half < 2; ++half) {
      bool const for_all = Tiling::cluster == 2 && !tile.alone;
      if (for_all && half != cluster_rank) continue;
      auto const copy = [&](std::uint32_t where, CUtensorMap const& map, int x, int y) {
        if (for_all) {
          copy_box_to(3, where, map, x, y, tile.matrix, barrier);
        } else {
          copy_box(where, map, x, y, tile.matrix, barrier);
        }
      };
      if constexpr (lines == lines_along::depth) {
        int const row = apart ? tile.column * features : tile.column * Tiling::columns + half * Tiling::columns / 2;
        copy(to + half * Tiling::columns / 2 * line_bytes, maps[apart ? half : 0], step * depth_of_stage, row);
      } else {
        constexpr int count = Tiling::columns / 64, each = apart ? count / 2 : count;
        for (int i = 0; i < count; ++i) {
          copy(to + i * 64 * line_bytes + half * 32 * line_bytes, maps[i / each],
               tile.column * each * 64 + i % each * 64, step * depth_of_stage + half * 32);
        }
      }
    }
  }

  /// Writes the weights of a stage, which are restored, in the places that the tensor memory accelerator would give them.
  template <class Operand>
  __device__ static void restore_weights(product_side<Operand> const& side, grouped_tile const& tile, int first,
                                         char* to) {
    constexpr int size = chunk_bytes / static_cast<int>(sizeof(element)), chunks = line_bytes / chunk_bytes;
    for (int c = static_cast<int>(threadIdx.x) % 128; c < Tiling::columns * chunks; c += 128) {
      int const line = c / chunks, column = first + c % chunks * size;
      int const feature = tile.column * features + (apart ? line % features : line);
      bool const of_gate = apart && line < features;
      Operand const& weights = of_gate ? side.gate.operand : side.weight.operand;
      restore_chunk(to + swizzled(line, c % chunks), weights, tile.matrix, feature, column,
                    feature < side.features ? side.depth - column : 0);
    }
  }

  /// Threads that say of a stage that it is full: all that bring rows, as their copies arrive, and who brings weights. That is one
  /// thread, which says how many bytes to expect, or, where weights may be restored, all of them.
  static constexpr int full_arrivals = 128 + (operand::in_place || fp8 ? 1 : 128);

  /// Who widens bytes meets who has copied them: lanes of a warp, or all warps.
  template <class Stored>
  __device__ static void meet_bringers() {
    if constexpr (Stored::shared_by_warps) {
      meet_warpgroup(5);
    } else {
      __syncwarp();
    }
  }

  /// The operands of a tile.
  template <class Operand>
  __device__ static __forceinline__ void bring_tile(grouped_args<operand> const& args,
                                                    product_side<Operand> const& side, grouped_tile const& tile,
                                                    stage_ring<Tiling>& ring, int cluster_rank) {
    constexpr int size = chunk_bytes / static_cast<int>(sizeof(factor)), chunks = line_bytes / chunk_bytes;
    constexpr int rows_apart = 128 / chunks, copies = Tiling::rows / rows_apart;
    int const thread = static_cast<int>(threadIdx.x) % 128;
    int const row = thread / chunks, column = thread % chunks * size;
    CUtensorMap const(&maps)[2] = tile.shared ? args.shared : args.routed;
    int const depth = side.depth;
    auto const row_of = [&](int r) -> std::int64_t {
      if (r >= tile.rows) return -1;
      std::int64_t const at = tile.first_row + r;
      return Problem::gathers && !tile.shared ? args.product.pair_of[at] / args.product.top_k : at;
    };
    factor const* first_row;
    std::int64_t row_stride;
    if constexpr (fp8) {
      first_row = side.rounded.codes;
      row_stride = depth;
    } else {
      first_row = side.rows;
      row_stride = side.row_stride;
    }
    row_copies<factor, copies> rows;
#pragma unroll
    for (int i = 0; i < copies; ++i) {
      std::int64_t const from = row_of(row + i * rows_apart);
      rows.set(i, from >= 0 ? first_row + from * row_stride : nullptr, column, first_row);
    }
    std::conditional_t<fp8, scale_copies<Problem, Tiling::rows>, nothing_stored> const scales(side, tile,
                                                                                              tile.column * features);
    int const count = steps(side);
    constexpr bool mapped = Operand::in_place || fp8, stores = !mapped && Tiling::stored_stages > 0;
    using lines_of_operand = stored_lines_of<Operand, features, Tiling::stored_stages>;
    std::conditional_t<stores, stored_weights<lines_of_operand, Tiling::columns, features, 128, Operand>,
                       nothing_stored> const stored(side, tile.matrix, tile.column * features, ring.stored());
    if constexpr (stores) {
      meet_bringers<lines_of_operand>();  // bytes of the last tile were widened
#pragma unroll 1
      for (int step = 0; step < Tiling::stored_stages; ++step) {
        if (step < count) stored.enqueue(step);
        commit_copies();
      }
    }
#pragma unroll 1
    for (int step = 0; step < count; ++step) {
      int const first = step * depth_of_stage;
      ring.wait_until_empty();
      if constexpr (mapped) {
        if (thread == 0) {
          arrive_and_expect(ring.full(), Tiling::column_bytes);
          copy_weights(maps, tile, step, cluster_rank, ring.columns(), ring.full());
        } else if constexpr (full_arrivals == 256) {
          arrive(ring.full());
        }
      }
      // Blocks of 64 rows without a row are not multiplied.
#pragma unroll
      for (int b = 0; b < Tiling::rows / 64; ++b) {
        if (b * 64 < tile.rows) {
          rows.template enqueue<64 / rows_apart>(
              ring.rows() + static_cast<std::uint32_t>(b * 64 * line_bytes + swizzled(row, column / size)),
              rows_apart * line_bytes, first, depth - first - column, b * (64 / rows_apart));
        }
      }
      if constexpr (fp8) scales.enqueue(scales_of(ring), step);
      arrive_when_copied(ring.full());
      if constexpr (stores) {
        wait_for_copies<Tiling::stored_stages - 1>();
        meet_bringers<lines_of_operand>();
        stored.widen(ring.columns(), step);
        arrive(ring.full());
        __syncwarp();
        if (step + Tiling::stored_stages < count) stored.enqueue(step + Tiling::stored_stages);
        commit_copies();
      } else if constexpr (!mapped) {
        extern __shared__ char memory[];
        restore_weights(side, tile, first, memory + (ring.columns() - shared_address(memory)));
        arrive(ring.full());
      }
      ring.advance();
    }
  }

  /// The warpgroup that brings operands.
  __device__ static void bring(grouped_args<operand> const& args, tiles const& list, stage_ring<Tiling> ring,
                               int cluster_rank) {
    for (std::int64_t index = blockIdx.x / Tiling::cluster; index < list.size(); index += gridDim.x / Tiling::cluster) {
      grouped_tile const tile = list.at(index, cluster_rank);
      if constexpr (operand::in_place) {
        bring_tile(args, tile.shared ? args.product.shared : args.product.routed, tile, ring, cluster_rank);
      } else if constexpr (fp8) {  // a shared expert, whose weights are elements, has a launch of its own
        bring_tile(args, args.product.routed, tile, ring, cluster_rank);
      } else if (tile.shared) {
        bring_tile(args, args.product.shared, tile, ring, cluster_rank);
      } else {
        bring_tile(args, args.product.routed, tile, ring, cluster_rank);
      }
    }
  }

  /// Multiplies a tile, `RowGroups` times 64 rows of it. Calls `has_come()` when all of it is in the ring.
  template <int RowGroups, int AllRowGroups, int Sums, class HasCome, class Rescale>
  __device__ static void multiply(float (&sums)[AllRowGroups][Sums], stage_ring<Tiling>& ring, std::uint32_t first_row,
                                  int count, HasCome const& has_come, Rescale const& rescale) {
    int before = 0;
#pragma unroll 1
    for (int step = 0; step < count; ++step) {
      ring.wait_until_full();
      if (step == count - 1) has_come();
      if constexpr (RowGroups > 0) {
        rescale(step, ring.rows());
        // Here and not where rows are brought: there it could wait for those of the next stages, too.
        show_to_async_proxy();
        begin_products();
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          std::uint64_t const right = lines == lines_along::depth
                                          ? factor_at(ring.columns() + part * 32u)
                                          : factor_at(ring.columns() + part * 16u * line_bytes, 64 * line_bytes);
#pragma unroll
          for (int b = 0; b < RowGroups; ++b) {
            std::uint64_t const left = factor_at(ring.rows() + (first_row + b * 64u) * line_bytes + part * 32u);
            multiply_from_shared<lines>(element{}, sums[b], left, right, step > 0 || part > 0);
          }
        }
        commit_products();
        wait_for_products<1>();
      }
      if (step > 0) release(ring, before);
      before = ring.stage();
      ring.advance();
    }
    if constexpr (RowGroups > 0) wait_for_products<0>();
    release(ring, before);
  }

  /// Where the scales of a stage stand.
  __device__ static std::uint32_t scales_of(stage_ring<Tiling> const& ring) {
    return ring.stored() + static_cast<std::uint32_t>(ring.stage() * tokens_in_fp8::scale_bytes(Tiling::rows));
  }

  /// Multiplies 64 rows of a tile of E4M3: sums of every stage apart, which are scaled and added.
  template <int Sums, class HasCome>
  __device__ static void multiply_scaled(float (&sums)[Sums], stage_ring<Tiling>& ring, grouped_tile const& tile,
                                         int first_row, int count, HasCome const& has_come) {
    int const thread = static_cast<int>(threadIdx.x) % 128;
    float of_stage[Sums];
#pragma unroll
    for (float& sum : sums) sum = 0.0f;
#pragma unroll 1
    for (int step = 0; step < count; ++step) {
      ring.wait_until_full();
      if (step == count - 1) has_come();
      show_to_async_proxy();
      begin_products();
#pragma unroll
      for (std::uint32_t part = 0; part < 4; ++part) {
        multiply_from_shared<lines>(
            factor{}, of_stage, factor_at(ring.rows() + static_cast<std::uint32_t>(first_row) * line_bytes + part * 32),
            factor_at(ring.columns() + part * 32), part > 0);
      }
      commit_products();
      stage_factors<Problem, Tiling::rows> const factors(scales_of(ring),
                                                         first_row + thread / 32 * 16 + thread % 32 / 4, tile.rows);
      wait_for_products<0>();
      release(ring, ring.stage());
      factors.add(sums, of_stage);
      ring.advance();
    }
  }

  /// A warp has read a stage to the end: says so to all blocks that fill it.
  __device__ static void release(stage_ring<Tiling> const& ring, int stage) {
    int const lane = static_cast<int>(threadIdx.x) % 32;
    if constexpr (Tiling::cluster == 1) {
      if (lane == 0) arrive(ring.empty(stage));
    } else {
      if (lane < Tiling::cluster) arrive_at(ring.empty(stage), static_cast<std::uint32_t>(lane));
    }
  }

  /// Bias, activation, and the result of 64 rows.
  template <int Sums>
  __device__ static void store(float const (&sums)[Sums], product_args<operand> const& args, grouped_tile const& tile,
                               int first_row, std::uint8_t const* scales) {
    side_rows<element> const& side = args.side(tile.shared);
    int const all_features = side.features;
    int const thread = static_cast<int>(threadIdx.x) % 128, lane = thread % 32, quarter = lane % 4;
    int const rows[2] = {first_row + thread / 32 * 16 + lane / 4, first_row + thread / 32 * 16 + lane / 4 + 8};
    int const first_feature = tile.column * features;

    float weights[2] = {1.0f, 1.0f};  // W (w x) = w (W x): the weight multiplies before the bias
    if constexpr (Adjusted && Problem::gathers) {
      bool const weighs = args.weights != nullptr && !tile.shared;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (weighs && rows[h] < tile.rows) weights[h] = args.weights[args.pair_of[tile.first_row + rows[h]]];
      }
    }
    float scale[2] = {1.0f, 1.0f};
    if constexpr (reads_exponents) {
      if (scales != nullptr) {
#pragma unroll
        for (int h = 0; h < 2; ++h) scale[h] = power_of_two(scales[thread / 32 * 16 + lane / 4 + 8 * h]);
      }
    }
    auto const value = [&](int h, float gate, float sum, float gate_bias, float bias) {
      if constexpr (reads_exponents) sum *= scale[h];
      return finished<Problem, Adjusted>(weights[h], gate, sum, gate_bias, bias);
    };

    // Four times eight features at once: 16 bytes of them for each of four lanes.
#pragma unroll
    for (int first = 0; first < features; first += 32) {
      std::uint32_t words[2][4] = {};
      float wide[2][8];  // half elements, whose range may be too small
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // A lane has the sums of two neighbouring columns of each eight. Where gate and up take turns, these are one
        // feature; two lanes trade, so that each has two neighbours of eight features.
        constexpr int up = pairs ? 1 : apart ? Sums / 2 : 0;  // how far the up sum is from the gate sum
        int const eighth = first / 8 + i;
        float values[2][2];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          int const feature = first_feature + eighth * 8 + (pairs ? c * 4 + quarter : quarter * 2 + c);
          float bias = 0.0f, gate_bias = 0.0f;
          if constexpr (Adjusted) {
            bias = bias_of(side.bias, tile.matrix, feature, all_features);
            if constexpr (Problem::gated) gate_bias = bias_of(side.gate_bias, tile.matrix, feature, all_features);
          }
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            int const at = pairs ? (2 * eighth + c) * 4 + 2 * h : eighth * 4 + 2 * h + c;
            values[h][c] = value(h, sums[at], sums[at + up], gate_bias, bias);
          }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          if constexpr (pairs) {
            bool const odd = quarter % 2 != 0;
            float const got = __shfl_xor_sync(~0u, odd ? values[h][0] : values[h][1], 1);
            (odd ? values[h][0] : values[h][1]) = got;
          }
          if constexpr (std::is_same_v<typename Problem::result, float>) {
            int const feature = first_feature + eighth * 8 + quarter * 2;
            if (rows[h] < tile.rows && feature < all_features) {
              float* const to = static_cast<float*>(side.result) + (tile.first_row + rows[h]) * side.result_stride;
              *reinterpret_cast<float2*>(to + feature) = make_float2(values[h][0], values[h][1]);
            }
          } else if constexpr (Problem::has_exponents) {
            wide[h][2 * i] = values[h][0];
            wide[h][2 * i + 1] = values[h][1];
          } else {
            words[h][i] = pack(element{}, values[h][0], values[h][1]);
          }
        }
      }
      if constexpr (!std::is_same_v<typename Problem::result, float>) {
        if constexpr (Problem::has_exponents && Problem::gathers) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            bool const exists = rows[h] < tile.rows && first_feature + first < all_features;
            bring_into_range(side.exponents, tile.first_row + rows[h], first_feature + first, exists, wide[h]);
#pragma unroll
            for (int i = 0; i < 4; ++i) words[h][i] = pack(element{}, wide[h][2 * i], wide[h][2 * i + 1]);
          }
        }
        int const feature = first_feature + first + quarter * 8;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          transpose_among_four(words[h]);
          if (rows[h] >= tile.rows || feature >= all_features) continue;
          // Traded features stand in the lanes 0, 2, 1, 3.
          constexpr int second = pairs ? 2 : 1, third = pairs ? 1 : 2;
          element* const to = static_cast<element*>(side.result) + (tile.first_row + rows[h]) * side.result_stride;
          *reinterpret_cast<chunk*>(to + feature) =
              make_uint4(words[h][0], words[h][second], words[h][third], words[h][3]);
        }
      }
    }
  }

  /// The largest exponents of a warpgroup's rows, where any row has one: see half_rows.cuh.
  __device__ static bool make_scales(product_args<operand> const& args, grouped_tile const& tile, int first_row,
                                     int group, std::uint8_t* scales) {
    side_rows<element> const& side = args.side(tile.shared);
    if (*side.exponents.any == 0) return false;
    meet_warpgroup(3 + group);  // those of the last tile were read
    for (int r = static_cast<int>(threadIdx.x) % 128; r < 64 * Tiling::row_groups; r += 128) {
      bool const exists = first_row + r < tile.rows;
      scales[r] =
          exists ? static_cast<std::uint8_t>(largest_exponent(side.exponents, tile.first_row + first_row + r)) : 0;
    }
    meet_warpgroup(3 + group);
    return true;
  }

  /// Brings the rows of a warpgroup's stage to these exponents.
  __device__ static void rescale_stage(product_args<operand> const& args, grouped_tile const& tile, int first_row,
                                       int group, std::uint8_t const* scales, int step, std::uint32_t stage) {
    side_rows<element> const& side = args.side(tile.shared);
    constexpr int chunks = line_bytes / chunk_bytes;
    extern __shared__ char memory[];
    char* const rows = memory + (stage - shared_address(memory));
    for (int c = static_cast<int>(threadIdx.x) % 128; c < 64 * Tiling::row_groups * chunks; c += 128) {
      int const r = c / chunks, feature = step * depth_of_stage + c % chunks * 8;
      if (first_row + r >= tile.rows || feature >= side.depth) continue;
      rescale_chunk(rows + swizzled(first_row + r, c % chunks), scales[r],
                    side.exponents.of(tile.first_row + first_row + r, feature));
    }
    show_to_async_proxy();
    meet_warpgroup(3 + group);
  }

  /// One of the two warpgroups that multiply.
  __device__ static void compute(grouped_args<operand> const& args, tiles const& list, stage_ring<Tiling> ring,
                                 int cluster_rank, int group, std::uint8_t* scales) {
    float sums[Tiling::row_groups][Tiling::columns / 2];
    std::int64_t const first = blockIdx.x / Tiling::cluster, apart_by = gridDim.x / Tiling::cluster;
    // Warpgroups with tiles of their own begin one after the other: the parity of a stage's barrier tells its last use from
    // the next one, but not from the one after that.
    int turn = 0;
    if (!Tiling::cooperative && group == 1 && first < list.size()) pass_to_warpgroup(1);
#pragma unroll 1
    for (std::int64_t index = first; index < list.size(); index += apart_by) {
      int const count = steps(args.product.side(list.is_shared(index)));
      if (!Tiling::cooperative && turn++ % 2 != group) {
        ring.skip(count);
        continue;
      }
      grouped_tile const tile = list.at(index, cluster_rank);
      int const first_row = Tiling::cooperative ? group * 64 * Tiling::row_groups : 0;
      int const rows = tile.rows - first_row;
      if constexpr (!Tiling::cooperative) wait_for_warpgroup(1 + group);
      auto const has_come = [&] {
        if (!Tiling::cooperative && index + apart_by < list.size()) pass_to_warpgroup(2 - group);
      };
      bool rescales = false;
      if constexpr (reads_exponents) rescales = make_scales(args.product, tile, first_row, group, scales);
      auto const rescale = [&](int step, std::uint32_t stage) {
        if constexpr (reads_exponents) {
          if (rescales) rescale_stage(args.product, tile, first_row, group, scales, step, stage);
        }
      };
      if (rows <= 0) {
        multiply<0>(sums, ring, first_row, count, has_come, rescale);
        continue;
      }
      if constexpr (fp8) {
        multiply_scaled(sums[0], ring, tile, first_row, count, has_come);
        scale_sums<Problem>(sums[0], args.product.routed, tile.matrix);
      } else if (Tiling::row_groups == 2 && rows > 64) {
        multiply<Tiling::row_groups>(sums, ring, first_row, count, has_come, rescale);
      } else {
        multiply<1>(sums, ring, first_row, count, has_come, rescale);
      }
#pragma unroll
      for (int b = 0; b < Tiling::row_groups; ++b) {
        if (b * 64 < rows) store(sums[b], args.product, tile, first_row + b * 64, rescales ? scales + b * 64 : nullptr);
      }
    }
  }

  __device__ static void run(grouped_args<operand> const& args) {
    extern __shared__ char memory[];
    std::uint32_t const ring_begin = (shared_address(memory) + 1023u) & ~1023u;
    stage_ring<Tiling> const ring(ring_begin);
    std::uint32_t const after_ring =
        ring_begin + Tiling::stages * (Tiling::stage_bytes + 2 * static_cast<int>(sizeof(std::uint64_t)));
    std::int32_t* const list_memory =
        reinterpret_cast<std::int32_t*>(memory + (after_ring - shared_address(memory)) + Tiling::stored_bytes);
    int const cluster_rank = Tiling::cluster == 1 ? 0 : static_cast<int>(block_in_cluster());
    if (threadIdx.x == 0) {
      // Empty: all warps that multiply.
      ring.make_barriers(full_arrivals, 4 * multiplying_groups * Tiling::cluster);
      publish_barriers();
    }
    tiles::template make<Tiling::threads>(list_memory, args.product.experts);
    if constexpr (Tiling::cluster > 1) {
      meet_cluster();
    } else {
      __syncthreads();
    }
    tiles const list(list_memory, args.product.experts, column_tiles(args.product.routed),
                     column_tiles(args.product.shared), args.product.tokens);
    int const group = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);
    if (group == 0) {
      give_registers<Tiling::few_registers>();
      bring(args, list, ring, cluster_rank);
    } else {
      take_registers<Tiling::many_registers>();
      auto* const scales = reinterpret_cast<std::uint8_t*>(list_memory) + tiles::bytes(args.product.experts.count);
      compute(args, list, ring, cluster_rank, group - 1, scales + (group - 1) * 64 * Tiling::row_groups);
    }
    // A block's memory and barriers are written by the others of its cluster.
    if constexpr (Tiling::cluster > 1) meet_cluster();
  }
};

/// Whether this is the compilation for Hopper. For other architectures, and for 90 without the a, the kernel is empty, and
/// has too few threads to be launched: the host sees that.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr bool compiles_for_hopper = true;
#else
inline constexpr bool compiles_for_hopper = false;
#endif

/// tokens, by index --copies--.
///                              stages --tensor cores--> sums in registers --bias, activation--> result
/// weights --tensor memory------'
template <class Problem, bool Adjusted, class Tiling, weight_order Order>
__global__ void __launch_bounds__(compiles_for_hopper ? Tiling::threads : 32, 1)
    grouped_products(__grid_constant__ grouped_args<typename Problem::operand> const args) {
  if constexpr (compiles_for_hopper) persistent_block<Problem, Adjusted, Tiling, Order>::run(args);
}

}  // namespace switchyard::hopper
