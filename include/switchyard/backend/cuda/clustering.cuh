#pragma once

#include <switchyard/backend/cuda/alignment.cuh>
#include <switchyard/backend/cuda/block_sums.cuh>
#include <switchyard/backend/cuda/grouped_gemm.cuh>
#include <switchyard/backend/cuda/launch.cuh>
#include <switchyard/backend/cuda/route.cuh>
#include <switchyard/backend/cuda/steps.cuh>
#include <switchyard/backend/cuda/temporaries.cuh>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/finite.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/layer.hpp>
#include <switchyard/router/adaptive_clustering.hpp>

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

/// What `router::adaptive_clustering` needs before step 1 of `backend::cuda`: a weight for every feature of every cluster.
///
/// tokens --count_tokens--> those that count
/// labels --order_by_cluster--> tokens of each cluster --sum_rows--> sums of tiles of rows --cluster_means--> means
/// --sum_rows--> sums of deviations --cluster_weights--> weights --scale_weights--> weights as the router reads them.
/// Tokens are read three times, and sums are taken in an order that depends on nothing but the labels.
namespace switchyard::cuda {

inline constexpr int clustering_threads = 256, clustering_warps = clustering_threads / 32;

/// What computing the weights reads and writes, all on the device.
template <class Element>
struct clustering_args {
  int hidden, experts;
  bool counts_empty;  ///< clusters without a token count in the means over clusters
  view<Element const> tokens;
  std::uint8_t const* active;  ///< null: all
  token_clusters clusters;
  float const* router;     ///< [experts, hidden]
  std::uint8_t* counted;   ///< [tokens]: 1 for those that count
  std::int32_t* offsets;   ///< [experts + 1]: tokens of clusters before each
  std::int32_t* order;     ///< [tokens]: tokens by cluster
  std::int32_t* known;     ///< one more than the largest id in any column
  float* partial;          ///< [tiles, hidden]: sums over a tile of a cluster's rows
  float* mean;             ///< [experts, hidden]
  float* totals;           ///< [experts, slices of 32 features]: sums of weights
  float* scale;            ///< [experts, hidden]
  float* scale_asked;      ///< the same for the caller, or null
  float* dispersion;       ///< [experts, hidden], or null
  float* inverse_lengths;  ///< [experts], null: rows are taken as they are
  int tile_rows;
};

/// The constants of a router, which kernels are compiled for.
template <clustering_traits Form>
struct clustering_form {
  static constexpr clustering_traits form = Form;
};

/// Rows of a cluster that a block sums up: no more than 256 tiles have many tokens.
constexpr std::int64_t cluster_tile_rows(std::int64_t tokens) {
  std::int64_t const rows = divide_up(tokens, 256);
  return rows < 32 ? 32 : rows;
}

/// One over the length of a row of the router weight, by a block.
template <class Element>
__device__ void write_inverse_length(clustering_args<Element> const& args, int expert) {
  int const hidden = args.hidden;
  if (args.inverse_lengths == nullptr) return;
  float square = 0.0f;
  for (int q = static_cast<int>(threadIdx.x); q < hidden; q += clustering_threads) {
    float const w = args.router[std::int64_t{expert} * hidden + q];
    square += w * w;
  }
  square = sum_over_block<clustering_warps>(square);
  if (threadIdx.x != 0) return;
  float const length = sqrtf(square);
  args.inverse_lengths[expert] = 1.0f / (length > clustering::least_row_length ? length : clustering::least_row_length);
}

/// The lengths alone, for a call whose weights of features are given.
template <class Element>
__global__ void __launch_bounds__(clustering_threads) row_lengths(clustering_args<Element> const args) {
  write_inverse_length(args, static_cast<int>(blockIdx.x));
}

/// Says which tokens count: those that are active and can be routed, for their cluster exists and their features are numbers.
/// A warp per token.
template <class Element>
__global__ void __launch_bounds__(clustering_threads) count_tokens(clustering_args<Element> const args) {
  int const lane = static_cast<int>(threadIdx.x) % 32;
  std::int64_t const token = std::int64_t{blockIdx.x} * clustering_warps + threadIdx.x / 32;
  if (token >= args.tokens.rows) return;
  std::int32_t const label = args.clusters.labels[token * args.clusters.choices];
  bool counts = (args.active == nullptr || args.active[token] != 0) && label >= 0 && label < args.experts;
  Element const* const x = args.tokens.row(token);
#pragma unroll 4
  for (int q = lane; q < args.hidden; q += 32) counts = counts && is_finite(static_cast<float>(x[q]));
  counts = __all_sync(~0u, counts) != 0;
  if (lane == 0) args.counted[token] = counts ? 1 : 0;
}

/// Lists the tokens of one cluster that count, in their order; clusters follow each other. Every block reads all labels.
template <class Element>
__global__ void __launch_bounds__(clustering_threads) order_by_cluster(clustering_args<Element> const args) {
  int const experts = args.experts;
  int const cluster = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  std::int64_t const tokens = args.tokens.rows;
  auto const label_of = [&](std::int64_t token) {
    return token < tokens && args.counted[token] != 0 ? args.clusters.labels[token * args.clusters.choices] : -1;
  };
  std::int32_t below = 0, largest = -1;
  for (std::int64_t token = thread; token < tokens; token += clustering_threads) {
    std::int32_t const label = label_of(token);
    below += label >= 0 && label < cluster;
    if (args.counts_empty) {
      for (int k = 0; label >= 0 && k < args.clusters.choices; ++k) {
        largest = max(largest, args.clusters.labels[token * args.clusters.choices + k]);
      }
    }
  }
  std::int32_t next = scan_block<clustering_threads>(below).all;
  if (thread == 0) args.offsets[cluster] = next;
  for (std::int64_t begin = 0; begin < tokens; begin += clustering_threads) {
    bool const here = label_of(begin + thread) == cluster;
    scanned const scan = scan_block<clustering_threads>(here);
    if (here) args.order[next + scan.before] = static_cast<std::int32_t>(begin + thread);
    next += scan.all;
  }
  if (thread == 0 && cluster == experts - 1) args.offsets[experts] = next;
  if (args.counts_empty) {
    if (cluster == 0) {
      __shared__ std::int32_t of_warps[clustering_warps];
      largest = __reduce_max_sync(~0u, largest);
      if (thread % 32 == 0) of_warps[thread / 32] = largest;
      __syncthreads();
      if (thread == 0) {
        for (std::int32_t other : of_warps) largest = max(largest, other);
        *args.known = largest + 1 < experts ? largest + 1 : experts;
      }
    }
  }
  write_inverse_length(args, cluster);
}

/// Sums the features of a tile of one cluster's tokens, or, with a `Form`, what they are away from the cluster's mean. A
/// thread has one feature, and neighbours have neighbouring ones.
template <class Element, class Form = void>
__global__ void __launch_bounds__(clustering_threads) sum_rows(clustering_args<Element> const args) {
  int const hidden = args.hidden, experts = args.experts;
  int const columns = static_cast<int>(divide_up(hidden, clustering_threads));
  constexpr bool deviations = !std::is_void_v<Form>;
  std::int64_t const tile = blockIdx.x / columns;
  routed_tile const found =
      find_tile<clustering_threads>(args.offsets, args.offsets + 1, experts, args.tile_rows, 1, tile);
  int const q = static_cast<int>(blockIdx.x % columns) * clustering_threads + static_cast<int>(threadIdx.x);
  if (found.expert < 0) return;
  bool const has = q < hidden;
  int const lane = static_cast<int>(threadIdx.x) % 32;
  std::int64_t const first = args.offsets[found.expert] + found.number * args.tile_rows;
  std::int64_t const left = args.offsets[found.expert + 1] - first;
  int const rows = left < args.tile_rows ? static_cast<int>(left) : args.tile_rows;
  float const mean = deviations && has ? args.mean[std::int64_t{found.expert} * hidden + q] : 0.0f;
  float sum = 0.0f;
  for (int begin = 0; begin < rows; begin += 32) {
    // A lane reads which token a row is, and all lanes of the warp get it.
    std::int32_t const mine = begin + lane < rows ? args.order[first + begin + lane] : 0;
    int const count = rows - begin < 32 ? rows - begin : 32;
#pragma unroll 8
    for (int r = 0; r < count; ++r) {
      std::int32_t const token = __shfl_sync(~0u, mine, r);
      float const x = has ? static_cast<float>(args.tokens.row(token)[q]) : 0.0f;
      if constexpr (deviations) {
        sum += clustering::deviation<Form::form>(x - mean);
      } else {
        sum += x;
      }
    }
  }
  if (has) args.partial[tile * hidden + q] = sum;
}

/// The mean over one cluster of what `sum_rows` summed: on the lanes of warp 0, one of 32 features each. 0 for an empty
/// cluster.
template <class Element>
__device__ float mean_of_tiles(clustering_args<Element> const& args, int cluster, int q) {
  int const hidden = args.hidden;
  __shared__ float sums[clustering_warps][32];
  __shared__ std::int32_t tiles_before[clustering_warps];
  int const warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  std::int32_t before = 0;
  for (int c = static_cast<int>(threadIdx.x); c < cluster; c += clustering_threads) {
    before += static_cast<std::int32_t>(divide_up(args.offsets[c + 1] - args.offsets[c], args.tile_rows));
  }
  before = __reduce_add_sync(~0u, before);
  if (lane == 0) tiles_before[warp] = before;
  __syncthreads();
  before = 0;
  for (std::int32_t b : tiles_before) before += b;
  std::int32_t const count = args.offsets[cluster + 1] - args.offsets[cluster];
  std::int32_t const tiles = static_cast<std::int32_t>(divide_up(count, args.tile_rows));
  float sum = 0.0f;
  for (std::int32_t t = warp; t < tiles && q < hidden; t += clustering_warps) {
    sum += args.partial[(std::int64_t{before} + t) * hidden + q];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  sum = 0.0f;
  for (auto const& of_warp : sums) sum += of_warp[lane];
  return count == 0 ? 0.0f : sum / static_cast<float>(count);
}

/// A block per cluster and 32 features.
template <class Element>
__global__ void __launch_bounds__(clustering_threads) cluster_means(clustering_args<Element> const args) {
  int const hidden = args.hidden, slices = static_cast<int>(divide_up(hidden, 32));
  int const cluster = static_cast<int>(blockIdx.x) / slices;
  int const q = static_cast<int>(blockIdx.x) % slices * 32 + static_cast<int>(threadIdx.x) % 32;
  float const mean = mean_of_tiles(args, cluster, q);
  if (threadIdx.x < 32 && q < hidden) args.mean[std::int64_t{cluster} * hidden + q] = mean;
}

/// Whether a cluster counts in the means over clusters.
template <class Element>
__device__ bool counts(clustering_args<Element> const& args, int cluster) {
  if (args.counts_empty) return cluster < *args.known;
  return args.offsets[cluster + 1] > args.offsets[cluster];
}

/// Weights before they are clipped, and their sums. A block per cluster and 32 features.
template <class Element, class Form>
__global__ void __launch_bounds__(clustering_threads) cluster_weights(clustering_args<Element> const args) {
  int const hidden = args.hidden, slices = static_cast<int>(divide_up(hidden, 32));
  int const cluster = static_cast<int>(blockIdx.x) / slices;
  int const q = static_cast<int>(blockIdx.x) % slices * 32 + static_cast<int>(threadIdx.x) % 32;
  float const deviation = mean_of_tiles(args, cluster, q);
  if (threadIdx.x >= 32) return;
  float weight = 0.0f;
  if (q < hidden) {
    weight = clustering::raw_weight<Form::form>(deviation);
    args.scale[std::int64_t{cluster} * hidden + q] = weight;
    if (args.dispersion != nullptr) args.dispersion[std::int64_t{cluster} * hidden + q] = deviation;
  }
  float const total = sum_over_warp(weight);
  if (threadIdx.x == 0) args.totals[blockIdx.x] = counts(args, cluster) ? total : 0.0f;
}

/// Clips the weights and scales them. A block per 32 features: warps share the clusters.
template <class Element, class Form>
__global__ void __launch_bounds__(clustering_threads) scale_weights(clustering_args<Element> const args) {
  int const hidden = args.hidden, experts = args.experts;
  int const slices = static_cast<int>(divide_up(hidden, 32));
  __shared__ float mean_of_all, columns[clustering_warps][32];
  __shared__ int live_of_all;
  int const thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  int const q = static_cast<int>(blockIdx.x) * 32 + lane;

  float total = 0.0f, live = 0.0f;
  for (int i = thread; i < experts * slices; i += clustering_threads) total += args.totals[i];
  for (int c = thread; c < experts; c += clustering_threads) live += counts(args, c) ? 1.0f : 0.0f;
  total = sum_over_block<clustering_warps>(total);
  live = sum_over_block<clustering_warps>(live);
  if (thread == 0) {
    live_of_all = live < 1.0f ? 1 : static_cast<int>(live);
    mean_of_all = total / (static_cast<float>(live_of_all) * static_cast<float>(hidden));
  }
  __syncthreads();
  float column = 0.0f;
  for (int c = warp; c < experts && q < hidden; c += clustering_warps) {
    if (counts(args, c)) {
      column += clustering::clipped<Form::form>(args.scale[std::int64_t{c} * hidden + q], mean_of_all);
    }
  }
  columns[warp][lane] = column;
  __syncthreads();
  column = 0.0f;
  for (auto const& of_warp : columns) column += of_warp[lane];
  float divisor = 1.0f;
  if constexpr (Form::form.scaling == feature_scaling::per_feature) divisor = column / static_cast<float>(live_of_all);
  if constexpr (Form::form.scaling == feature_scaling::global) divisor = mean_of_all;
  for (int c = warp; c < experts && q < hidden; c += clustering_warps) {
    std::int64_t const at = std::int64_t{c} * hidden + q;
    float const weight =
        counts(args, c) ? clustering::clipped<Form::form>(args.scale[at], mean_of_all) / divisor : 1.0f;
    args.scale[at] = weight;
    if (args.scale_asked != nullptr) args.scale_asked[at] = weight;
  }
}

/// Tokens times the weights of their clusters, for experts that see them so. A block per token.
template <class Element>
__global__ void __launch_bounds__(clustering_threads)
    scale_tokens(clustering_args<Element> const args, float const* scale, Element* to, std::int64_t stride) {
  int const hidden = args.hidden;
  std::int64_t const token = blockIdx.x;
  std::int32_t const label = args.clusters.labels[token * args.clusters.choices];
  bool const active = args.active == nullptr || args.active[token] != 0;
  bool const scaled = active && label >= 0 && label < args.experts;
  Element const* const x = args.tokens.row(token);
  for (int q = static_cast<int>(threadIdx.x); q < hidden; q += clustering_threads) {
    Element value = x[q];
    if (scaled) value = Element(static_cast<float>(value) * scale[std::int64_t{label} * hidden + q]);
    to[token * stride + q] = value;
  }
}

/// The weights of the features, unless the caller gives them, and what else routing needs of them.
template <clustering_traits Form>
struct feature_step<router::features_scaled_by_cluster<Form>> {
  static constexpr bool scales = true;

  template <class Layer>
  struct memory {
    std::uint8_t* counted;
    std::int32_t *offsets, *order, *known;
    float *partial, *mean, *totals, *scale, *inverse_lengths = nullptr;
    typename Layer::element* scaled_tokens = nullptr;  // [tokens, padded hidden]

    constexpr memory(carver& from, std::int64_t tokens) {
      constexpr int experts = Layer::dims.experts, hidden = Layer::dims.hidden;
      constexpr std::int64_t table = std::int64_t{experts} * hidden;
      counted = from.take<std::uint8_t>(tokens);
      offsets = from.take<std::int32_t>(experts + 1);
      order = from.take<std::int32_t>(tokens);
      known = from.take<std::int32_t>(1);
      // No less than for any smaller number of tokens.
      std::int64_t const most_tiles = (tokens < 256 * 32 ? tokens / 32 : 256) + experts;
      partial = from.take<float>(most_tiles * hidden);
      mean = from.take<float>(table);
      totals = from.take<float>(experts * divide_up(hidden, 32));
      scale = from.take<float>(table);
      if constexpr (Form.unit_rows) inverse_lengths = from.take<float>(experts);
      if constexpr (Form.experts_see_scaled) {
        scaled_tokens = from.take<typename Layer::element>(tokens * padded<typename Layer::element>(hidden));
      }
    }
  };

  template <class Layer>
  static void enqueue(forward_args<Layer> const& args, launch_queue const& queue, memory<Layer> const& m,
                      route_args<typename Layer::element>& to) {
    using element = typename Layer::element;
    constexpr shape dims = Layer::dims;
    constexpr int threads = clustering_threads;
    std::int64_t const tokens = args.tokens.rows;
    clustering_args<element> const clusters{.hidden = dims.hidden,
                                            .experts = dims.experts,
                                            .counts_empty = Form.counts_empty,
                                            .tokens = args.tokens,
                                            .active = args.active,
                                            .clusters = args.inputs,
                                            .router = to.weight,
                                            .counted = m.counted,
                                            .offsets = m.offsets,
                                            .order = m.order,
                                            .known = m.known,
                                            .partial = m.partial,
                                            .mean = m.mean,
                                            .totals = m.totals,
                                            .scale = m.scale,
                                            .scale_asked = args.report.feature_scale,
                                            .dispersion = args.report.dispersion,
                                            .inverse_lengths = m.inverse_lengths,
                                            .tile_rows = static_cast<int>(cluster_tile_rows(tokens))};
    to.features = {args.inputs.feature_scale, args.inputs.labels, args.inputs.choices, false};
    to.inverse_lengths = m.inverse_lengths;
    if (args.inputs.feature_scale == nullptr) {
      to.features.table = m.scale;
      enqueue_weights(queue, clusters);
    } else {
      if constexpr (Form.unit_rows) {
        launch(queue, "row_lengths", row_lengths<element>, dims.experts, threads, 0, clusters);
      }
      if (args.report.feature_scale != nullptr) {
        enqueue_copy(queue, args.report.feature_scale, args.inputs.feature_scale,
                     std::int64_t{dims.experts} * dims.hidden);
      }
    }
    to.features.aligned = is_aligned(to.features.table, dims.hidden);
    if constexpr (Form.experts_see_scaled) {
      if (tokens == 0) return;
      launch(queue, "scale_tokens", scale_tokens<element>, tokens, threads, 0, clusters, to.features.table,
             m.scaled_tokens, padded<element>(dims.hidden));
    }
  }

  template <class Layer>
  static view<typename Layer::element const> tokens_of_experts(forward_args<Layer> const& args,
                                                               memory<Layer> const& m) {
    if constexpr (Form.experts_see_scaled) {
      return {m.scaled_tokens, args.tokens.rows, Layer::dims.hidden,
              padded<typename Layer::element>(Layer::dims.hidden)};
    } else {
      return args.tokens;
    }
  }

 private:
  template <class Element>
  static void enqueue_weights(launch_queue const& queue, clustering_args<Element> const& clusters) {
    using form = clustering_form<Form>;
    constexpr int threads = clustering_threads;
    int const experts = clusters.experts;
    std::int64_t const tokens = clusters.tokens.rows, slices = divide_up(clusters.hidden, 32);
    std::int64_t const tiles = (tokens / clusters.tile_rows + experts) * divide_up(clusters.hidden, threads);
    if (tokens > 0) {
      launch(queue, "count_tokens", count_tokens<Element>, divide_up(tokens, clustering_warps), threads, 0, clusters);
    }
    launch(queue, "order_by_cluster", order_by_cluster<Element>, experts, threads, 0, clusters);
    launch(queue, "sum_rows", sum_rows<Element>, tiles, threads, 0, clusters);
    launch(queue, "cluster_means", cluster_means<Element>, experts * slices, threads, 0, clusters);
    launch(queue, "sum_rows (deviations)", sum_rows<Element, form>, tiles, threads, 0, clusters);
    launch(queue, "cluster_weights", cluster_weights<Element, form>, experts * slices, threads, 0, clusters);
    launch(queue, "scale_weights", scale_weights<Element, form>, slices, threads, 0, clusters);
  }
};

}  // namespace switchyard::cuda
