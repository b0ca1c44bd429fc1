#pragma once

#include <switchyard/backend/quantised_products.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/host_device.hpp>
#include <switchyard/layer.hpp>

#include <algorithm>
#include <cstdint>
#include <string_view>

namespace switchyard {

/// How the two warpgroups that multiply share the tiles of a block.
enum class hopper_schedule {
  cooperative,  ///< each has half of the rows of every tile
  ping_pong     ///< each has every other tile: one stores its results while the other multiplies
};

/// How one of the two products is cut up.
struct hopper_tile {
  int rows;     ///< tokens of a tile: 128 or 256 where warpgroups cooperate, else 64 or 128
  int columns;  ///< rows of the weights: 64, 128, 192 or 256; where an expert is gated, half of them gate features
  int stages;   ///< pieces of 64 of the depth, of 128 in E4M3, that are in shared memory at once
  hopper_schedule schedule;
  int cluster;  ///< blocks whose tiles of rows follow each other, 1 or 2; of one expert, they bring its weights together
  int group;    ///< clusters' tiles of rows that are worked on before others, so that their operands stay in the L2
  std::string_view chosen_by;  ///< the measurement that chose it: device, tokens, times
};

/// How `backend::hopper` runs a layer.
struct hopper_tuning {
  int few_rows;  ///< with at most so many rows per expert on average, the products are those of `backend::cuda`
  hopper_tile in, out;
  int most_blocks = 1 << 16;  ///< that run at once: with fewer than multiprocessors, something else can run beside
  quantised_products quantised = quantised_products::exact;  ///< another one is never chosen silently
};

/// Stages that fit, at most `most`, beside the lists of so many experts and what else has so many bytes.
constexpr int hopper_stages(int rows, int columns, int experts, int most, int others = 0) {
  int const free = 227 * 1024 - 2048 - 12 * (experts + 1) - others, stage = (rows + columns) * 128;
  return std::min(most, free / stage);
}

/// The tuning of `backend::hopper`. No device has been measured yet: what it says is reasoned.
///
/// The warpgroups of a cooperative tile drift apart as far as the ring lets them, which hides a part of each tile's end.
/// Where the depth is short the end is a larger part, and hides behind the products of another tile; 192 columns are what two
/// tiles at once leave registers for. A tile of 128 x 256 reads 32 bytes for each cycle of the tensor cores, with weights
/// that two blocks bring together, one of 192 columns 36, and of 128 columns 48: narrower ones are for widths of which the
/// wider ones would waste too much.
struct default_hopper_tuning {
  static constexpr std::string_view name = "";

  template <class Layer>
  static constexpr hopper_tuning of() {
    constexpr int hidden = Layer::dims.hidden, intermediate = Layer::dims.intermediate;
    constexpr int inputs = Layer::expert_traits.input_projections();
    return {.few_rows = 8,
            .in = tile<Layer>(inputs * intermediate, hopper_schedule::cooperative, inputs == 2),
            .out = tile<Layer>(hidden, intermediate < 1024 ? hopper_schedule::ping_pong : hopper_schedule::cooperative,
                               false)};
  }

 private:
  template <class Layer>
  static constexpr hopper_tile tile(int width, hopper_schedule schedule, bool gated) {
    bool const ping_pong = schedule == hopper_schedule::ping_pong;
    int columns = 0;
    std::int64_t least = 0;
    for (int candidate : {256, 192, 128}) {
      // Gated columns come in two halves, which have to be multiples of 64.
      if ((ping_pong && candidate == 256) || (gated && candidate == 192)) continue;
      std::int64_t const cost = divide_up(width, candidate) * candidate *
                                (candidate == 256   ? 100
                                 : candidate == 192 ? 103
                                                    : 112);
      if (columns != 0 && cost >= least) continue;
      columns = candidate;
      least = cost;
    }
    return {.rows = 128,
            .columns = columns,
            .stages = hopper_stages(128, columns, Layer::dims.experts, 6),
            .schedule = schedule,
            .cluster = 2,
            .group = 8,
            .chosen_by = "reasoned, not measured"};
  }
};

/// The same with tokens, and rows between the products, rounded to E4M3: `quantised_products::tokens_in_fp8`.
///
///   layer<..., expert::stored_as<expert::gated_mlp<silu>, quantised::fp8_block>, backend::hopper_with<tokens_in_fp8>, bfloat16>
///
/// A warpgroup has 64 rows and 128 columns, for each sum is two: of 128 products, and of all. Calls with few rows per expert are exact, and those
/// whose weights begin at no multiple of 16 bytes.
struct tokens_in_fp8 {
  static constexpr std::string_view name = "tokens_in_fp8";

  template <class Layer>
  static constexpr hopper_tuning of() {
    constexpr int rows = 128, columns = 128, most = 6;
    constexpr hopper_tile tile{
        .rows = rows,
        .columns = columns,
        .stages = hopper_stages(rows, columns, Layer::dims.experts, most, most * scale_bytes(rows)),
        .schedule = hopper_schedule::cooperative,
        .cluster = 2,
        .group = 8,
        .chosen_by = "reasoned, not measured"};
    return {.few_rows = 8, .in = tile, .out = tile, .quantised = quantised_products::tokens_in_fp8};
  }

  /// A stage's scales: one of each row, and two of the weights.
  SWITCHYARD_HD static constexpr int scale_bytes(int rows) { return (rows + 4) * 4; }
};

}  // namespace switchyard
