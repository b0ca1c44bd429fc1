#pragma once

#include <switchyard/backend/cuda/alignment.cuh>
#include <switchyard/backend/cuda/block_sums.cuh>
#include <switchyard/backend/cuda/cuda.cuh>
#include <switchyard/backend/cuda/instructions.cuh>
#include <switchyard/backend/cuda/launch.cuh>
#include <switchyard/backend/cuda/linear_map.cuh>
#include <switchyard/backend/cuda/pass_size.cuh>
#include <switchyard/backend/cuda/route.cuh>
#include <switchyard/backend/cuda/steps.cuh>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/expert/activation.hpp>
#include <switchyard/expert/rows.hpp>
#include <switchyard/layer.hpp>

#include <cmath>
#include <cstdint>

/// Layers whose experts are rows, on a GPU: route, then the weighted sum of each token's rows, without a plan.
namespace switchyard::cuda {

/// What the sum of rows reads and writes, all on the device.
template <class Element>
struct row_sum {
  view<Element const> tokens, up, down;  ///< up: no data where experts have no hidden unit
  view<Element> output;
  bool aligned_units, aligned_rows;  ///< 16 bytes may be read at a time: of tokens and up; of down
  int top_k;
  std::uint8_t const* active;
  std::int32_t const* experts;  ///< [tokens, top_k]
  float const* weights;         ///< [tokens, top_k]
  float* scaled;                ///< [tokens, top_k], weights times hidden units; null: weights are used as they are
  float* gate;                  ///< [tokens], factors of the output; null: none
  Element const *output_gate, *output_gate_bias;
  float*
      projected;  ///< [tokens, hidden], factors of the sums that a projection sees, and then what it sees; null: none
};

inline constexpr int unit_threads = 128, sum_threads = 256;

/// a . b by a warp, on each of its lanes.
template <class Element>
__device__ float dot_by_warp(Element const* a, Element const* b, int count, bool aligned) {
  constexpr int width = chunk_bytes / static_cast<int>(sizeof(Element));
  int const lane = static_cast<int>(threadIdx.x) % 32;
  float sum = 0.0f;
  for (int first = lane * width; first < count; first += 32 * width) {
    float left[width], right[width];
    if (aligned && first + width <= count) {
      to_floats<Element>(*reinterpret_cast<chunk const*>(a + first), left);
      to_floats<Element>(*reinterpret_cast<chunk const*>(b + first), right);
    } else {
#pragma unroll
      for (int i = 0; i < width; ++i) {
        left[i] = first + i < count ? static_cast<float>(a[first + i]) : 0.0f;
        right[i] = first + i < count ? static_cast<float>(b[first + i]) : 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < width; ++i) sum += left[i] * right[i];
  }
  return sum_over_warp(sum);
}

/// scaled[t][k] = weight * activation(up row of expert k . token t), gate[t] = sigmoid(token t . output gate + bias): a block per token,
/// a warp per row.
template <class Element, class Activation>
__global__ void __launch_bounds__(unit_threads) make_units(row_sum<Element> const of) {
  constexpr int warps = unit_threads / 32;
  std::int64_t const token = blockIdx.x;
  if (of.active != nullptr && of.active[token] == 0) return;
  int const hidden = static_cast<int>(of.tokens.columns);
  int const warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  Element const* const x = of.tokens.row(token);
  for (int k = warp; of.scaled != nullptr && k < of.top_k; k += warps) {
    std::int64_t const pair = token * of.top_k + k;
    std::int32_t const expert = of.experts[pair];
    float unit = 1.0f;
    if (expert >= 0) unit = Activation::apply(dot_by_warp(of.up.row(expert), x, hidden, of.aligned_units));
    if (lane == 0) of.scaled[pair] = of.weights[pair] * unit;
  }
  if (of.gate != nullptr && warp == 0) {
    float sum = dot_by_warp(of.output_gate, x, hidden, false);
    if (of.output_gate_bias != nullptr) sum += static_cast<float>(of.output_gate_bias[0]);
    if (lane == 0) of.gate[token] = 1.0f / (1.0f + std::exp(-sum));
  }
}

/// output[t] = gate * sum over choices of weight * row. A block has a token and some columns: its warps share the rows, and add what they
/// have in the order of the warps. A pair that goes nowhere adds its weight: 0, or NaN where the token could not be routed. A token that
/// is not active gets zeros.
template <class Element>
__global__ void __launch_bounds__(sum_threads) sum_token_rows(row_sum<Element> const of) {
  constexpr int width = chunk_bytes / static_cast<int>(sizeof(Element)), warps = sum_threads / 32, columns = 32 * width;
  constexpr int together = 4;
  __shared__ float partial[warps][columns];
  int const hidden = static_cast<int>(of.tokens.columns), pieces = (hidden + columns - 1) / columns;
  std::int64_t const token = blockIdx.x / pieces;
  int const begin = static_cast<int>(blockIdx.x % pieces) * columns;
  int const warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  int const first = begin + lane * width;
  bool const active = of.active == nullptr || of.active[token] != 0, whole = of.aligned_rows && first + width <= hidden;
  float const* const weights = of.scaled != nullptr ? of.scaled : of.weights;
  float sum[width] = {}, start = 0.0f;
  auto const read = [&](std::int32_t expert, float(&values)[width]) {
    Element const* const row = of.down.row(expert) + first;
    if (whole) {
      to_floats<Element>(*reinterpret_cast<chunk const*>(row), values);
    } else {
#pragma unroll
      for (int i = 0; i < width; ++i) values[i] = first + i < hidden ? static_cast<float>(row[i]) : 0.0f;
    }
  };
  // A warp's choices follow each other: its lanes read 32 of them at a time, and hand them round.
  int const each = (of.top_k + warps - 1) / warps, last = min(of.top_k, (warp + 1) * each);
  for (int choice = warp * each; active && choice < last; choice += 32) {
    std::int64_t const pair = token * of.top_k + choice + lane;
    int const count = min(32, last - choice);
    std::int32_t const my_expert = lane < count ? of.experts[pair] : -1;
    float const my_weight = lane < count ? weights[pair] : 0.0f;
    if (my_expert < 0) start += my_weight;
    for (int k = 0; k < count; k += together) {
      std::int32_t expert[together];
      float weight[together], values[together][width];
#pragma unroll
      for (int r = 0; r < together; ++r) {  // those past the last lane with a choice are none
        expert[r] = __shfl_sync(~0u, my_expert, k + r < 32 ? k + r : 31);
        if (k + r >= count) expert[r] = -1;
        weight[r] = __shfl_sync(~0u, my_weight, k + r < 32 ? k + r : 31);
      }
#pragma unroll
      for (int r = 0; r < together; ++r) {
        if (expert[r] >= 0) read(expert[r], values[r]);
      }
#pragma unroll
      for (int r = 0; r < together; ++r) {
        if (expert[r] < 0) continue;
#pragma unroll
        for (int i = 0; i < width; ++i) sum[i] += weight[r] * values[r][i];
      }
    }
  }
  start = sum_over_warp(start);
#pragma unroll
  for (int i = 0; i < width; ++i) partial[warp][lane * width + i] = sum[i] + start;
  __syncthreads();
  float const gate = of.gate != nullptr && active ? of.gate[token] : 1.0f;
  for (int i = static_cast<int>(threadIdx.x); i < columns && begin + i < hidden; i += sum_threads) {
    float all = 0.0f;
    for (int w = 0; w < warps; ++w) all += partial[w][i];
    if (of.projected != nullptr) {
      of.projected[token * hidden + begin + i] *= all;
      continue;
    }
    of.output.row(token)[begin + i] = Element(of.gate != nullptr ? gate * all : all);
  }
}

/// projected = silu(gate of tokens).
struct projection_gates {
  float* to;
  int hidden;
  __device__ void operator()(std::int64_t, std::int64_t token, int feature, float value) const {
    to[token * hidden + feature] = silu::apply(value);
  }
};

/// output = what the projection makes * gate. A token that is not active gets zeros.
template <class Element>
struct projected_rows {
  view<Element> output;
  std::uint8_t const* active;
  float const* gate;  ///< [tokens], null: none
  __device__ void operator()(std::int64_t, std::int64_t token, int feature, float value) const {
    bool const is_active = active == nullptr || active[token] != 0;
    if (gate != nullptr && is_active) value *= gate[token];
    output.row(token)[feature] = Element(is_active ? value : 0.0f);
  }
};

/// Hands out what was decided: a thread per pair, and before it one per expert.
struct row_report {
  std::int64_t pairs;
  std::int32_t const* experts;
  float const* weights;
  decisions to;
};
template <int Threads>
__global__ void __launch_bounds__(Threads) clear_counts(decisions const to, int experts) {
  int const expert = static_cast<int>(blockIdx.x) * Threads + static_cast<int>(threadIdx.x);
  if (expert >= experts) return;
  if (to.counts != nullptr) to.counts[expert] = 0;
  if (to.load != nullptr) to.load[expert] = 0;
}
template <int Threads>
__global__ void __launch_bounds__(Threads) report_pairs(row_report const of) {
  std::int64_t const pair = std::int64_t{blockIdx.x} * Threads + threadIdx.x;
  if (pair >= of.pairs) return;
  std::int32_t const expert = of.experts[pair];
  if (of.to.experts != nullptr) of.to.experts[pair] = expert;
  if (of.to.weights != nullptr) of.to.weights[pair] = of.weights[pair];
  if (of.to.dropped != nullptr) of.to.dropped[pair] = 0;
  if (expert < 0) return;
  using counter = unsigned long long;
  if (of.to.counts != nullptr) atomicAdd(reinterpret_cast<counter*>(of.to.counts + expert), counter{1});
  if (of.to.load != nullptr) atomicAdd(reinterpret_cast<counter*>(of.to.load + expert), counter{1});
}

/// A layer whose experts are rows.
template <class Products>
struct schedule_step<expert::sum_of_rows, Products> {
  template <class Layer>
  using routing = route_step<typename Layer::router::source>;
  template <class Layer>
  static constexpr bool has_units = requires {
    typename Layer::expert::activation;
  };

  template <class Layer>
  struct memory {
    typename routing<Layer>::template memory<Layer> of_routing;
    std::int32_t* experts;  // [tokens, top_k]
    float* weights;         // [tokens, top_k]
    float *scaled = nullptr, *gate = nullptr, *projected = nullptr;

    constexpr memory(carver& from, std::int64_t tokens)
        : of_routing(from, tokens),
          experts(from.take<std::int32_t>(tokens * Layer::dims.top_k)),
          weights(from.take<float>(tokens * Layer::dims.top_k)) {
      if constexpr (has_units<Layer>) scaled = from.take<float>(tokens * Layer::dims.top_k);
      if constexpr (Layer::expert::has_output_gate) gate = from.take<float>(tokens);
      if constexpr (Layer::expert::has_gated_projection) projected = from.take<float>(tokens * Layer::dims.hidden);
    }

    cuda_routes routed() const { return {experts, weights}; }
  };

  template <class Layer>
  static void enqueue(forward_args<Layer> const& args, launch_queue const& queue, memory<Layer> const& m,
                      pass_size const* = nullptr) {
    enqueue_route(args, queue, m);
    enqueue_plan(args, queue, m);
    enqueue_experts(args, queue, m, tokens_of_experts(args, m));
  }

  template <class Layer>
  static void enqueue_route(forward_args<Layer> const& args, launch_queue const& queue, memory<Layer> const& m) {
    // Nobody asks for the sets of pairs, but the blocks that make them go by their size.
    pair_sets none;
    none.block_pairs =
        static_cast<int>(routing<Layer>::template block_tokens<Layer>(args.tokens.rows)) * Layer::dims.top_k;
    none.token_blocks = divide_up(args.tokens.rows, routing<Layer>::template block_tokens<Layer>(args.tokens.rows));
    routing<Layer>::template enqueue<Layer>(args, queue, m.of_routing,
                                            {.experts = m.experts,
                                             .weights = m.weights,
                                             .priority = nullptr,
                                             .chosen = none,
                                             .kept = {},
                                             .sorted = {},
                                             .below = nullptr,
                                             .row_of = nullptr,
                                             .dropped = nullptr},
                                            nullptr);
  }

  /// Hands out what was decided; there is nothing to plan.
  template <class Layer>
  static void enqueue_plan(forward_args<Layer> const& args, launch_queue const& queue, memory<Layer> const& m) {
    constexpr int threads = 256;
    decisions const& to = args.decisions;
    std::int64_t const pairs = args.tokens.rows * Layer::dims.top_k;
    if (to.counts != nullptr || to.load != nullptr) {
      launch(queue, "clear_counts", clear_counts<threads>, divide_up(Layer::dims.experts, threads), threads, 0, to,
             Layer::dims.experts);
    }
    bool const asked = to.experts != nullptr || to.weights != nullptr || to.dropped != nullptr ||
                       to.counts != nullptr || to.load != nullptr;
    if (pairs > 0 && asked) {
      launch(queue, "report_pairs", report_pairs<threads>, divide_up(pairs, threads), threads, 0,
             row_report{pairs, m.experts, m.weights, to});
    }
  }

  template <class Layer>
  static view<typename Layer::element const> tokens_of_experts(forward_args<Layer> const& args,
                                                               memory<Layer> const& m) {
    return routing<Layer>::template tokens_of_experts<Layer>(args, m.of_routing);
  }

  template <class Layer>
  static void enqueue_experts(forward_args<Layer> const& args, launch_queue const& queue, memory<Layer> const& m,
                              view<typename Layer::element const> const& tokens) {
    using element = typename Layer::element;
    if (tokens.rows == 0) return;
    auto const& w = args.weights;
    row_sum<element> of{};
    of.tokens = tokens;
    of.output = args.output;
    of.top_k = Layer::dims.top_k;
    of.active = args.active;
    of.experts = m.experts;
    of.weights = m.weights;
    of.scaled = m.scaled;
    of.gate = m.gate;
    if constexpr (Layer::expert::has_output_gate) {
      of.output_gate = w.output_gate;
      of.output_gate_bias = w.output_gate_bias;
    }
    if constexpr (has_units<Layer>) {
      of.up = w.up;
      of.down = w.down;
    } else {
      of.down = w.values;
    }
    of.aligned_units = is_aligned(of.tokens) && is_aligned(of.up);
    of.aligned_rows = is_aligned(of.down);
    if constexpr (has_units<Layer>) {
      launch(queue, "make_units", make_units<element, typename Layer::expert::activation>, tokens.rows, unit_threads, 0,
             of);
    } else if constexpr (Layer::expert::has_output_gate) {
      launch(queue, "make_units", make_units<element, relu>, tokens.rows, unit_threads, 0, of);
    }
    if constexpr (Layer::expert::has_gated_projection) {
      of.projected = m.projected;
      enqueue_map(queue,
                  linear_map<element, element>{.rows = tokens.data,
                                               .row_stride = tokens.row_stride,
                                               .row_count = tokens.rows,
                                               .weight = w.projection_gate,
                                               .bias = w.projection_gate_bias,
                                               .features = Layer::dims.hidden,
                                               .depth = Layer::dims.hidden},
                  projection_gates{m.projected, Layer::dims.hidden});
    }
    constexpr int columns = 32 * (chunk_bytes / static_cast<int>(sizeof(element)));
    launch(queue, "sum_token_rows", sum_token_rows<element>, tokens.rows * divide_up(Layer::dims.hidden, columns),
           sum_threads, 0, of);
    if constexpr (Layer::expert::has_gated_projection) {
      enqueue_map(queue,
                  linear_map<float, element>{.rows = m.projected,
                                             .row_stride = Layer::dims.hidden,
                                             .row_count = tokens.rows,
                                             .weight = w.projection,
                                             .bias = w.projection_bias,
                                             .features = Layer::dims.hidden,
                                             .depth = Layer::dims.hidden},
                  projected_rows<element>{args.output, args.active, m.gate});
    }
  }
};

}  // namespace switchyard::cuda
