#pragma once

#include <switchyard/backend/cuda/alignment.cuh>
#include <switchyard/backend/cuda/launch.cuh>
#include <switchyard/backend/cuda/products.cuh>
#include <switchyard/backend/hopper/fp8.cuh>
#include <switchyard/backend/hopper/grouped_gemm.cuh>
#include <switchyard/backend/hopper/tma.cuh>
#include <switchyard/backend/hopper/tuning.cuh>
#include <switchyard/core/divide_up.hpp>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>

/// How `backend::hopper` launches the two products.
namespace switchyard {

/// Which kernels a call's products are.
enum class product_kind {
  grouped,   ///< those of Hopper
  few_rows,  ///< those of `backend::cuda`, for the experts have few rows
  strided,   ///< those of `backend::cuda`, for tokens or weights have rows that cannot be moved by 16 bytes
  portable   ///< those of `backend::cuda`, for the layer has no others; `describe` says so
};

namespace hopper {

using namespace cuda;

/// Whether a layer has products of its own on Hopper: two-byte elements, rows of a multiple of 16 bytes, and no terms of low rank.
template <class Layer>
constexpr bool has_grouped_products() {
  constexpr int chunk_elements = chunk_bytes / static_cast<int>(sizeof(typename Layer::element));
  return std::is_same_v<typename Layer::expert::computation, expert::two_products> &&
         sizeof(typename Layer::element) == 2 && Layer::dims.hidden % chunk_elements == 0 &&
         Layer::dims.intermediate % chunk_elements == 0 &&
         Layer::expert_traits.shared_intermediate % chunk_elements == 0;
}

/// The tensor memory accelerator takes strides that are positive multiples of 16 bytes, below 2^40.
template <class T>
bool is_stride_of_map(std::int64_t stride) {
  std::int64_t const bytes = stride * static_cast<std::int64_t>(sizeof(T));
  return bytes > 0 && bytes < (std::int64_t{1} << 40) && bytes % chunk_bytes == 0;
}

/// Matrices of a product, in the one order in which a kernel reads all of them.
template <class Element>
class mapped_weights {
 public:
  mapped_weights(bool gated, product_side<weight_view<Element>> const& side, int experts)
      : gate_(side.gate.view),
        weight_(side.weight.view),
        depth_(side.depth),
        features_(side.features),
        experts_(experts),
        gated_(gated) {}

  /// Whether the matrices stand in this order.
  bool stand_in(weight_order order) const {
    if (order == weight_order::feature_pairs) {
      return gated_ && weight_.data == gate_.data + 1 && gate_.row_stride == 2 && weight_.row_stride == 2 &&
             gate_.column_stride == weight_.column_stride && gate_.expert_stride == weight_.expert_stride &&
             fits(gate_, 1, gate_.column_stride);
    }
    auto const stands = [&](weight_view<Element> const& view) {
      return order == weight_order::depth ? fits(view, view.column_stride, view.row_stride)
                                          : fits(view, view.row_stride, view.column_stride);
    };
    return stands(weight_) && (!gated_ || stands(gate_));
  }

  void map(tensor_maps const& make, weight_order order, std::uint32_t const (&box)[2], CUtensorMap (&maps)[2]) const {
    auto const map_of = [&](CUtensorMap& result, weight_view<Element> const& view) {
      auto const long_as = [](auto size) { return static_cast<std::uint64_t>(size); };
      bool const by_depth = order == weight_order::depth;
      int const wide = order == weight_order::feature_pairs ? 2 * features_ : features_;
      // The stride of a single expert may be anything, but the driver looks at it.
      std::int64_t const line = by_depth ? view.row_stride : view.column_stride,
                         next = experts_ > 1 ? view.expert_stride : line;
      make.map(result, view.data,
               {long_as(by_depth ? depth_ : wide), long_as(by_depth ? wide : depth_), long_as(experts_)}, {line, next},
               box);
    };
    map_of(maps[0], gated_ ? gate_ : weight_);
    if (gated_ && order != weight_order::feature_pairs) map_of(maps[1], weight_);
  }

 private:
  bool fits(weight_view<Element> const& view, std::int64_t unit, std::int64_t line) const {
    return unit == 1 && is_aligned(view.data, 0) && is_stride_of_map<Element>(line) &&
           (experts_ == 1 || is_stride_of_map<Element>(view.expert_stride));
  }

  weight_view<Element> gate_, weight_;
  int depth_, features_, experts_;
  bool gated_;
};

inline int device_attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  check("cudaGetDevice", cudaGetDevice(&device));
  check("cudaDeviceGetAttribute", cudaDeviceGetAttribute(&value, which, device));
  return value;
}

/// Throws where the device at hand is no Hopper GPU.
inline void check_hopper() {
  int const major = device_attribute(cudaDevAttrComputeCapabilityMajor),
            minor = device_attribute(cudaDevAttrComputeCapabilityMinor);
  if (major == 9 && minor == 0) return;
  fail("backend::hopper", "compute capability 9.0 (take backend::cuda on other devices)",
       std::to_string(major) + "." + std::to_string(minor));
}

/// Throws where the program has no code of the kernel for Hopper.
template <class... Parameters>
void check_is_compiled_for_hopper(char const* what, void (*kernel)(Parameters...), int threads) {
  cudaFuncAttributes attributes{};
  check(what, cudaFuncGetAttributes(&attributes, reinterpret_cast<void const*>(kernel)));
  if (attributes.maxThreadsPerBlock >= threads) return;
  fail("backend::hopper", "a program compiled for the architecture 90a (set CMAKE_CUDA_ARCHITECTURES to 90a)",
       "one compiled for " + std::to_string(attributes.ptxVersion));
}

/// The weights of a product in E4M3, as codes.
template <class Operand>
product_side<weight_view<std::uint8_t>> codes_of(bool gated, product_side<Operand> const& side) {
  product_side<weight_view<std::uint8_t>> codes{};
  auto const view_of = [](auto const& matrix) {
    std::int64_t const columns = matrix.columns;
    return weight_view<std::uint8_t>{matrix.weight, matrix.rows * columns, columns, 1};
  };
  codes.depth = side.depth;
  codes.features = side.features;
  if (gated) codes.gate.view = view_of(side.gate.operand.of);
  codes.weight.view = view_of(side.weight.operand.of);
  return codes;
}

/// The order in which all matrices of a product stand, if there is one.
template <class Operand>
std::optional<weight_order> order_of(bool gated, product_args<Operand> const& product_of) {
  mapped_weights const shared(gated, product_of.shared, 1);
  auto const shared_stand_in = [&](weight_order order) {
    return product_of.shared.features == 0 || shared.stand_in(order);
  };
  if constexpr (Operand::in_place) {
    bool const has_routed = product_of.experts.matrices > 0;  // else the shared expert is alone
    mapped_weights const routed(gated, product_of.routed, product_of.experts.matrices);
    for (weight_order order : {weight_order::depth, weight_order::feature, weight_order::feature_pairs}) {
      if ((!has_routed || routed.stand_in(order)) && shared_stand_in(order)) return order;
    }
  } else if (shared_stand_in(weight_order::depth)) {
    return weight_order::depth;
  }
  return std::nullopt;
}

/// One product with one tile, on at most so many blocks. The matrices have to stand in the order that is named.
template <class Problem, bool Adjusted, class Tiling, weight_order Order>
void enqueue_grouped(launch_queue const& queue, char const* what,
                     product_args<typename Problem::operand> const& product_of, int most_blocks) {
  using product = persistent_block<Problem, Adjusted, Tiling, Order>;
  if (queue.only_counts()) return queue.count();
  auto const kernel = grouped_products<Problem, Adjusted, Tiling, Order>;
  check_is_compiled_for_hopper(what, kernel, Tiling::threads);
  tensor_maps const make;
  grouped_args<typename Problem::operand> args{};
  args.product = product_of;
  if constexpr (product::fp8) {
    mapped_weights(Problem::gated, codes_of(Problem::gated, product_of.routed), product_of.experts.matrices)
        .map(make, Order, product::box, args.routed);
  } else {
    if constexpr (Problem::operand::in_place) {
      if (product_of.routed.features > 0 && product_of.experts.matrices > 0) {
        mapped_weights(Problem::gated, product_of.routed, product_of.experts.matrices)
            .map(make, Order, product::box, args.routed);
      }
    }
    if (product_of.shared.features > 0) {
      mapped_weights(Problem::gated, product_of.shared, 1).map(make, Order, product::box, args.shared);
    }
  }
  // No more blocks than there can be tiles, or than run at once.
  expert_rows const& experts = product_of.experts;
  std::int64_t const most = std::min(experts.most, experts.most / Tiling::rows + experts.count);
  std::int64_t const clusters =
      divide_up(most, Tiling::cluster) * product::column_tiles(product_of.routed) +
      divide_up(divide_up(product_of.tokens, Tiling::rows), Tiling::cluster) * product::column_tiles(product_of.shared);
  int const blocks = std::min(device_attribute(cudaDevAttrMultiProcessorCount), most_blocks);
  std::int64_t const at_once = std::max(blocks / Tiling::cluster, 1);
  launch_clusters(queue, what, kernel, std::min(clusters, at_once) * Tiling::cluster, Tiling::threads,
                  Tiling::shared_bytes(experts.count), Tiling::cluster, args);
}

/// The same in the order in which the matrices stand.
template <class Problem, bool Adjusted, class Tiling>
void enqueue_grouped(launch_queue const& queue, char const* what,
                     product_args<typename Problem::operand> const& product_of, int most_blocks) {
  if constexpr (!Problem::operand::in_place) {
    enqueue_grouped<Problem, Adjusted, Tiling, weight_order::depth>(queue, what, product_of, most_blocks);
  } else {
    switch (*order_of(Problem::gated, product_of)) {
      case weight_order::depth:
        return enqueue_grouped<Problem, Adjusted, Tiling, weight_order::depth>(queue, what, product_of, most_blocks);
      case weight_order::feature:
        return enqueue_grouped<Problem, Adjusted, Tiling, weight_order::feature>(queue, what, product_of, most_blocks);
      case weight_order::feature_pairs:
        if constexpr (Problem::gated) {
          enqueue_grouped<Problem, Adjusted, Tiling, weight_order::feature_pairs>(queue, what, product_of, most_blocks);
        }
    }
  }
}

/// Whether the sums of a product may be multiplied by combine weights or have a bias.
template <class Layer>
inline constexpr bool in_is_adjusted = Layer::expert_traits.bias || Layer::router_traits.weighs_input;
template <class Layer>
inline constexpr bool out_is_adjusted = Layer::expert_traits.bias;

/// A tile's stages where quantised weights are widened on the way, whose bytes stand beside them: the most with which two of their stages
/// fit, or one, and then as many of those.
struct stored_tile {
  int stages = 0, stored_stages = 0, bytes = 0;  ///< 0 stages: as any operand
};
template <class Problem, int Columns>
struct stored_tiles {
  static constexpr int matrices = Problem::gated ? 2 : 1;
  template <int Stages>
  using lines = stored_lines_of<typename Problem::operand, Columns / matrices, Stages>;
  static constexpr int most_stages = 6;

  static constexpr stored_tile of(hopper_tile const& tile, int experts) {
    if constexpr (multiplies_fp8<Problem>) {
      return {tile.stages, 0, tile.stages * tokens_in_fp8::scale_bytes(tile.rows)};
    } else if constexpr (lines<1>::exists) {
      constexpr int bytes[] = {0,
                               matrices * lines<1>::bytes,
                               matrices * lines<2>::bytes,
                               matrices * lines<3>::bytes,
                               matrices * lines<4>::bytes,
                               matrices * lines<5>::bytes,
                               matrices * lines<6>::bytes};
      for (int least : {2, 1}) {
        for (int stages = tile.stages; stages >= 2; --stages) {
          int stored = 0;
          while (stored < most_stages &&
                 hopper_stages(tile.rows, tile.columns, experts, stages, bytes[stored + 1]) == stages)
            ++stored;
          if (stored >= least) return {stages, stored, bytes[stored]};
        }
      }
    }
    return {};
  }
};

/// The products of `backend::hopper`.
template <class Tuning>
struct tuned_products {
  template <class Layer>
  static constexpr hopper_tuning tuning = Tuning::template of<Layer>();

  /// Whether rows are rounded to E4M3, which has to be possible.
  template <class Layer>
  static constexpr bool rounds_rows = [] {
    constexpr quantised_products chosen = tuning<Layer>.quantised;
    static_assert(chosen == quantised_products::exact || chosen == quantised_products::tokens_in_fp8,
                  "switchyard: backend::hopper multiplies quantised weights exactly, or with tokens in fp8. Set "
                  "hopper_tuning::quantised to quantised_products::exact or tokens_in_fp8.");
    if constexpr (chosen == quantised_products::tokens_in_fp8) {
      static_assert(fp8_scales<operand_of<Layer>>::exist && has_grouped_products<Layer>(),
                    "switchyard: quantised_products::tokens_in_fp8 is for experts stored as quantised::fp8_block or "
                    "quantised::fp8_tensor, with bfloat16 or half tokens. Take quantised_products::exact for others.");
      static_assert(
          Layer::dims.hidden % rounded_rows::group == 0 && Layer::dims.intermediate % rounded_rows::group == 0,
          "switchyard: with quantised_products::tokens_in_fp8 shape.hidden and shape.intermediate are "
          "multiples of 128, which have a scale. Take quantised_products::exact for others.");
      return true;
    } else {
      return false;
    }
  }();

  template <class Layer, class Between>
  static void enqueue(launch_queue const& queue, product_args<operand_of<Layer>> const& in,
                      product_args<operand_of<Layer>> const& out, Between const& between) {
    if constexpr (!has_grouped_products<Layer>()) {
      portable_products::enqueue<Layer>(queue, in, out, between);
    } else {
      if (choose<Layer>(in, out) != product_kind::grouped) {
        return portable_products::enqueue<Layer>(queue, in, out, between);
      }
      enqueue_in<Layer>(queue, in);
      between();
      enqueue_out<Layer>(queue, out);
    }
  }

  // Each of the two alone, where `choose` says that the products are grouped; with the rounding of its rows.
  template <class Layer>
  static void enqueue_in(launch_queue const& queue, product_args<operand_of<Layer>> const& product_of) {
    enqueue_side<in_product<Layer>,
                 product_in<dense<Layer>, typename Layer::expert::activation, Layer::expert_traits.gated>,
                 in_is_adjusted<Layer>, Layer, false>(queue, "grouped_products (in)", product_of);
  }
  template <class Layer>
  static void enqueue_out(launch_queue const& queue, product_args<operand_of<Layer>> const& product_of) {
    enqueue_side<out_product<Layer>, product_out<dense<Layer>>, out_is_adjusted<Layer>, Layer, true>(
        queue, "grouped_products (out)", product_of);
  }

  template <class Layer>
  static product_kind choose(product_args<operand_of<Layer>> const& in, product_args<operand_of<Layer>> const& out) {
    if (rows_per_expert<Layer>(in.tokens_of_call()) <= tuning<Layer>.few_rows) return product_kind::few_rows;
    constexpr bool gated = Layer::expert_traits.gated;
    bool fit = in.routed.reading == access::by_chunks && order_of(gated, in) && order_of(false, out);
    if constexpr (rounds_rows<Layer>) {
      auto const stand = [&](bool with_gate, product_args<operand_of<Layer>> const& product_of) {
        return mapped_weights(with_gate, codes_of(with_gate, product_of.routed), product_of.experts.matrices)
            .stand_in(weight_order::depth);
      };
      fit = fit && stand(gated, in) && stand(false, out);
    }
    return fit ? product_kind::grouped : product_kind::strided;
  }

 private:
  template <class Layer>
  using dense = weight_view<typename Layer::element>;

  /// `Shared` is the problem of a shared expert alone, whose weights and tokens stay elements where those of others are E4M3.
  template <class Problem, class Shared, bool Adjusted, class Layer, bool Out>
  static void enqueue_side(launch_queue const& queue, char const* what,
                           product_args<operand_of<Layer>> const& product_of) {
    if constexpr (!rounds_rows<Layer>) {
      enqueue_tiled<Problem, Adjusted, Layer, Out>(queue, what, product_of);
    } else {
      enqueue_rounding<Problem>(queue, product_of);
      product_args<operand_of<Layer>> routed = product_of;
      routed.shared.features = 0;
      enqueue_tiled<of_rounded_rows<Problem>, Adjusted, Layer, Out>(queue, what, routed);
      if constexpr (Layer::expert_traits.shared_intermediate > 0) {
        product_args<dense<Layer>> shared{};
        shared.shared = product_of.shared;
        shared.tokens = product_of.tokens;
        shared.top_k = product_of.top_k;
        enqueue_tiled<Shared, Adjusted, Layer, Out>(queue, what, shared);
      }
    }
  }

  template <class Problem, bool Adjusted, class Layer, bool Out>
  static void enqueue_tiled(launch_queue const& queue, char const* what,
                            product_args<typename Problem::operand> const& product_of) {
    constexpr hopper_tile tile = Out ? tuning<Layer>.out : tuning<Layer>.in;
    constexpr stored_tile stored = stored_tiles<Problem, tile.columns>::of(tile, Layer::dims.experts);
    using tiling = grouped_tiling<tile.rows, tile.columns, (stored.stages > 0 ? stored.stages : tile.stages),
                                  tile.schedule, tile.cluster, tile.group, stored.stored_stages, stored.bytes>;
    static_assert(tiling::shared_bytes(Layer::dims.experts) <= most_shared_bytes,
                  "switchyard: the stages of a hopper_tile do not fit shared memory. Lower stages; hopper_stages says "
                  "how many fit.");
    if constexpr (rounds_rows<Layer>) {
      enqueue_grouped<Problem, Adjusted, tiling, weight_order::depth>(queue, what, product_of,
                                                                      tuning<Layer>.most_blocks);
    } else {
      enqueue_grouped<Problem, Adjusted, tiling>(queue, what, product_of, tuning<Layer>.most_blocks);
    }
  }
};

}  // namespace hopper
}  // namespace switchyard
