#pragma once

#include <switchyard/backend/cuda/clustering.cuh>
#include <switchyard/backend/cuda/half_rows.cuh>
#include <switchyard/backend/cuda/instructions.cuh>
#include <switchyard/backend/cuda/pair_sets.cuh>
#include <switchyard/backend/cuda/route.cuh>
#include <switchyard/backend/cuda/strata.cuh>
#include <switchyard/capacity/capacity_policy.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/shape.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/dispatch/plan.hpp>
#include <switchyard/router/router_policy.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

/// The temporaries of a call of `backend::cuda`: their list is compiled once for each type of element.
namespace switchyard::cuda {

/// What the temporaries of a layer depend on, but for its elements.
struct layer_sizes {
  shape dims;
  int shared_intermediate;
  capacity_traits capacity;
  clustering_traits clustering;
  bool precomputed;           ///< routes are the caller's
  bool may_route_two_blocks;  ///< a block that routes has room for twice sixteen tokens, on every device

  /// Pairs wait in the order of their tokens' priorities.
  constexpr bool sorts() const { return capacity.drops && capacity.order == queue::priority; }

  /// Tokens of a block that routes, in sixteens: with more of them the router weight is read less often, with fewer there are
  /// more blocks, and they fit devices with less shared memory.
  constexpr int route_blocks(std::int64_t tokens) const { return tokens > 2048 && may_route_two_blocks ? 2 : 1; }
  constexpr int piece_tokens(std::int64_t tokens) const {
    return precomputed ? take_routes_tile::tokens : 16 * route_blocks(tokens);
  }

  constexpr std::int64_t cluster_tiles(std::int64_t tokens) const {
    return tokens / cluster_tile_rows(tokens) + dims.experts;
  }
  /// No less than for any smaller number of tokens.
  constexpr std::int64_t most_cluster_tiles(std::int64_t tokens) const {
    return (tokens < 256 * 32 ? tokens / 32 : 256) + dims.experts;
  }
};

/// Elements from one row to the next, where rows start at multiples of 16 bytes.
template <class Element>
constexpr std::int64_t padded(int width) {
  constexpr int size = chunk_bytes / static_cast<int>(sizeof(Element));
  return divide_up(width, size) * size;
}

/// Every temporary of a call.
template <class Element>
struct temporaries {
  std::uint8_t* counted = nullptr;  // see clustering.cuh
  std::int32_t *cluster_offsets = nullptr, *cluster_order = nullptr, *known_clusters = nullptr;
  float *partial = nullptr, *mean = nullptr, *totals = nullptr, *scale = nullptr, *inverse_lengths = nullptr;
  Element* scaled_tokens = nullptr;                   // [tokens, outer_stride]
  float* logits = nullptr;                            // [tokens, experts], written for auxiliary values only
  std::int32_t* experts;                              // [tokens, top_k]
  float *routed_weights, *weights;                    // [tokens, top_k]
  float* priority = nullptr;                          // [tokens]
  std::int32_t *order = nullptr, *scratch = nullptr;  // [tokens]
  std::uint8_t* dropped = nullptr;                    // [tokens, top_k]
  pair_sets chosen, kept, sorted;                     // see plan.cuh
  std::int32_t *below = nullptr, *rows = nullptr;     // [experts, pieces], [experts, groups]
  dispatch_plan plan;
  std::int64_t inner_stride, outer_stride, shared_inner_stride;
  Element *inner, *shared_inner = nullptr;              // [rows, inner_stride], [tokens, shared_inner_stride]
  summed_row<Element>*outer, *shared_outer = nullptr;   // [rows, outer_stride], [tokens, outer_stride]
  row_exponents exponents = {}, shared_exponents = {};  // of `inner` and `shared_inner`

  constexpr temporaries(layer_sizes const& layer, carver& from, std::int64_t tokens)
      : inner_stride(padded<Element>(layer.dims.intermediate)),
        outer_stride(padded<Element>(layer.dims.hidden)),
        shared_inner_stride(padded<Element>(layer.shared_intermediate)) {
    shape const& dims = layer.dims;
    std::int64_t const pairs = tokens * dims.top_k;
    if (!layer.precomputed) logits = from.take<float>(tokens * dims.experts);
    if (layer.clustering.scales) {
      std::int64_t const table = std::int64_t{dims.experts} * dims.hidden;
      counted = from.take<std::uint8_t>(tokens);
      cluster_offsets = from.take<std::int32_t>(dims.experts + 1);
      cluster_order = from.take<std::int32_t>(tokens);
      known_clusters = from.take<std::int32_t>(1);
      partial = from.take<float>(layer.most_cluster_tiles(tokens) * dims.hidden);
      mean = from.take<float>(table);
      totals = from.take<float>(dims.experts * divide_up(dims.hidden, 32));
      scale = from.take<float>(table);
      if (layer.clustering.unit_rows) inverse_lengths = from.take<float>(dims.experts);
      if (layer.clustering.experts_see_scaled) scaled_tokens = from.take<Element>(tokens * outer_stride);
    }
    experts = from.take<std::int32_t>(pairs);
    weights = routed_weights = from.take<float>(pairs);
    if (layer.capacity.renormalises) weights = from.take<float>(pairs);
    if (layer.sorts()) {
      priority = from.take<float>(tokens);
      order = from.take<std::int32_t>(tokens);
      scratch = from.take<std::int32_t>(tokens);
    }
    std::int64_t const least_piece = layer.piece_tokens(0);
    auto const sets = [&] {
      pair_sets result;
      result.piece_pairs = layer.piece_tokens(tokens) * dims.top_k;
      result.pieces = divide_up(tokens, layer.piece_tokens(tokens));
      // Small pieces take more words but for the last one: room for both, so that fewer tokens never need more.
      pair_sets of_small = result;
      of_small.piece_pairs = least_piece * dims.top_k;
      of_small.pieces = divide_up(tokens, least_piece);
      std::int64_t const small = of_small.words_per_expert(), words = result.words_per_expert();
      result.words = from.take<std::uint32_t>(dims.experts * (small > words ? small : words));
      return result;
    };
    kept = chosen = sets();
    if (layer.capacity.drops) {
      kept = sets();
      if (layer.sorts()) sorted = sets();
      dropped = from.take<std::uint8_t>(pairs);
      rows = from.take<std::int32_t>(dims.experts * tokens);  // as many groups as tokens at most
    } else {
      below = from.take<std::int32_t>(dims.experts * divide_up(tokens, least_piece));
    }
    plan.offsets = from.take<std::int32_t>(dims.experts + 1);
    plan.pair_of = from.take<std::int32_t>(pairs);
    plan.row_of = from.take<std::int32_t>(pairs);
    inner = from.take<Element>(pairs * inner_stride);
    outer = from.take<summed_row<Element>>(pairs * outer_stride);
    auto const take_exponents = [&](std::int64_t count, int features) {
      int const each = exponents_of_row(features);
      return row_exponents{from.take<std::uint8_t>(count * each), exponents.any, each, count};
    };
    if constexpr (std::is_same_v<Element, half>) {
      exponents.any = from.take<std::int32_t>(1);
      exponents = take_exponents(pairs, dims.intermediate);
    }
    if (layer.shared_intermediate > 0) {
      shared_inner = from.take<Element>(tokens * shared_inner_stride);
      shared_outer = from.take<summed_row<Element>>(tokens * outer_stride);
      if constexpr (std::is_same_v<Element, half>) shared_exponents = take_exponents(tokens, layer.shared_intermediate);
    }
  }
};

/// Every temporary of a call of a stratified layer, with those of its passes, which have the same memory in turn.
template <class Element>
struct strata_temporaries : strata_record<Element> {
  std::span<std::byte> of_pass;

  /// `keeps_sums`: the residual is the token before its norm. `bytes_of_pass`: what the largest pass needs.
  constexpr strata_temporaries(shape const& dims, int strata, bool keeps_sums, std::size_t bytes_of_pass, carver& from,
                               std::int64_t tokens) {
    std::int64_t const pairs = tokens * dims.top_k;
    this->stride = padded<Element>(dims.hidden);
    this->sizes = from.take<pass_size>(strata);
    this->token_of = from.take<std::int32_t>(tokens);
    this->stratum = from.take<std::uint8_t>(tokens);
    this->rows = from.take<Element>(tokens * this->stride);
    this->sums = nullptr;
    if (keeps_sums) this->sums = from.take<Element>(tokens * this->stride);
    this->experts = from.take<std::int32_t>(pairs);
    this->weights = from.take<float>(pairs);
    this->dropped = from.take<std::uint8_t>(pairs);
    this->counts = from.take<std::int64_t>(dims.experts);
    this->load = from.take<std::int64_t>(dims.experts);
    this->auxiliary = from.take<auxiliary_values>(strata);
    of_pass = {from.take<std::byte>(static_cast<std::int64_t>(bytes_of_pass)), bytes_of_pass};
  }
};

}  // namespace switchyard::cuda
