#pragma once

#include <switchyard/backend/cuda/alignment.cuh>
#include <switchyard/backend/cuda/block_sums.cuh>
#include <switchyard/backend/cuda/combine.cuh>
#include <switchyard/backend/cuda/cuda.cuh>
#include <switchyard/backend/cuda/instructions.cuh>
#include <switchyard/backend/cuda/launch.cuh>
#include <switchyard/backend/cuda/pass_size.cuh>
#include <switchyard/backend/cuda/steps.cuh>
#include <switchyard/backend/cuda/temporaries.cuh>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/dispatch/pass.hpp>
#include <switchyard/layer.hpp>
#include <switchyard/router/stratified.hpp>

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

/// How `backend::cuda` runs a stratified layer: each pass is an ordinary one, and this is what happens between them. A token's place
/// between passes is its row of the output.
namespace switchyard::cuda {

/// The pass at hand, and where each token is, all on the device.
template <class Element>
struct strata_record {
  std::int64_t stride;     ///< of `rows` and `sums`, a multiple of 16 bytes
  pass_size* sizes;        ///< [strata]
  std::int32_t* token_of;  ///< [tokens] which token each row of the pass is
  std::uint8_t* stratum;   ///< [tokens] where each token is; the number of strata: done
  Element* rows;           ///< [tokens, stride]: of the pass, its result in place of its tokens
  Element* sums;           ///< [tokens, stride]: tokens before the norm, null where the residual is the one after it
  std::int32_t* experts;   ///< [tokens of the pass, top_k], and so on: what the pass decided
  float* weights;
  std::uint8_t* dropped;
  std::int64_t *counts, *load;  ///< [experts]
  auxiliary_values* auxiliary;  ///< [strata]
};

/// What the kernels need of a call. Not the arguments of `forward` as they are: nvcc 13.0 lays out a kernel's parameter
/// as if its members of no size had one.
template <class Element>
struct strata_args {
  int strata, top_k;          ///< of the layer
  int stratum, first_expert;  ///< of the pass
  shape pass;
  view<Element const> tokens, residual;
  view<Element> output;
  bool aligned_tokens, aligned_residual, aligned_output;  ///< may be moved by 16 bytes
  std::uint8_t const* active;                             ///< null: all
  switchyard::decisions decisions;
  std::uint8_t* passes;                     ///< [tokens], null: nobody asks
  switchyard::auxiliary_values* auxiliary;  ///< null: nobody asks
  strata_record<Element> record;
};

/// Where a token goes after a pass, and how it is normalised there.
template <int Strata>
struct strata_above {
  int first_expert[Strata];
  bool normalises, aligned_norms;
  stratum_norms<Strata> norm;
};

inline constexpr int gathered_tokens = 32, gather_threads = 256;

/// Copies the tokens of a stratum to rows that follow each other, in the order of tokens; a block has some tokens, and
/// counts those before them for itself. In the lowest stratum all tokens begin, but padding, whose output is made zero.
template <class Element>
__global__ void __launch_bounds__(gather_threads, 4) gather_stratum(strata_args<Element> const args) {
  int const hidden = args.pass.hidden, top_k = args.top_k, stratum = args.stratum;
  constexpr int width = chunk_bytes / static_cast<int>(sizeof(Element));
  strata_record<Element> const& record = args.record;
  std::int64_t const tokens = args.tokens.rows, first = std::int64_t{blockIdx.x} * gathered_tokens;
  int const thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  auto const is_here = [&](std::int64_t token) {
    if (stratum == 0) return args.active == nullptr || args.active[token] != 0;
    return record.stratum[token] == stratum;
  };

  std::int32_t mine = 0;
  if (stratum == 0 && args.active == nullptr) {
    mine = thread == 0 ? static_cast<std::int32_t>(first) : 0;
  } else {
#pragma unroll 4
    for (std::int64_t token = thread; token < first; token += gather_threads) mine += is_here(token) ? 1 : 0;
  }
  std::int32_t const before = scan_block<gather_threads>(mine).all;

  std::int64_t const token = first + lane;
  bool const exists = token < tokens, here = exists && is_here(token);
  unsigned const all_here = __ballot_sync(~0u, here);
  std::int64_t const row = before + __popc(all_here & ((1u << lane) - 1));
  if (warp == 0) {
    if (here) record.token_of[row] = static_cast<std::int32_t>(token);
    if (exists && stratum == 0) {
      record.stratum[token] = here ? 0 : static_cast<std::uint8_t>(args.strata);
      if (args.passes != nullptr) args.passes[token] = 0;
    }
    if (lane == 0 && first + gathered_tokens >= tokens) {
      std::int64_t const count = before + __popc(all_here);
      record.sizes[stratum] = {count};
    }
  }
  for (int i = warp; i < gathered_tokens && first + i < tokens; i += gather_threads / 32) {
    std::int64_t const t = first + i;
    bool const copied = (all_here >> i & 1u) != 0;
    if (copied) {
      Element const* const from = stratum == 0 ? args.tokens.row(t) : args.output.row(t);
      bool const aligned = stratum == 0 ? args.aligned_tokens : args.aligned_output;
      Element* const to = record.rows + (before + __popc(all_here & ((1u << i) - 1))) * record.stride;
      for (int q = lane * width; q < hidden; q += 32 * width) {
        if (aligned && q + width <= hidden) {
          *reinterpret_cast<chunk*>(to + q) = *reinterpret_cast<chunk const*>(from + q);
        } else {
          for (int j = q; j < hidden && j < q + width; ++j) to[j] = from[j];
        }
      }
    } else {
      if (stratum == 0) {
        for (int q = lane; q < hidden; q += 32) args.output.row(t)[q] = Element(0.0f);
      }
      for (int k = lane; k < top_k; k += 32) {
        std::int64_t const pair = (stratum * tokens + t) * top_k + k;
        if (args.decisions.experts != nullptr) args.decisions.experts[pair] = -1;
        if (args.decisions.weights != nullptr) args.decisions.weights[pair] = 0.0f;
        if (args.decisions.dropped != nullptr) args.decisions.dropped[pair] = 0;
      }
    }
  }
}

/// How often the threads of a block that finishes a token go over its features.
template <class Element>
constexpr int finish_turns(int hidden) {
  constexpr int width = chunk_bytes / static_cast<int>(sizeof(Element));
  return static_cast<int>(divide_up(hidden, combine_threads<Element>(hidden) * width));
}

/// Adds up what the passes counted, by one block.
template <class Element>
__device__ inline void add_counts(strata_args<Element> const& args) {
  int const thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  strata_record<Element> const& record = args.record;
  auto const add = [&](std::int64_t* to, std::int64_t const* from) {
    for (int e = thread; to != nullptr && e < args.pass.experts; e += threads) {
      to[args.first_expert + e] = from[e] + (args.stratum == 0 ? 0 : to[args.first_expert + e]);
    }
  };
  add(args.decisions.counts, record.counts);
  add(args.decisions.load, record.load);
  if (args.stratum == args.strata - 1 && args.auxiliary != nullptr && thread == 0) {
    mean_auxiliary of_passes;
    for (int i = 0; i < args.strata; ++i) {
      if (record.sizes[i].tokens > 0) of_passes.add(record.auxiliary[i]);
    }
    *args.auxiliary = of_passes.mean();
  }
}

/// 16 bytes of elements of a row as floats, and back, as far as the row goes.
template <class Element>
struct row_chunk {
  static constexpr int width = chunk_bytes / static_cast<int>(sizeof(Element));

  __device__ static void read(Element const* from, bool by_chunks, int q, int hidden, float (&to)[width]) {
    if (by_chunks && q + width <= hidden) {
      to_floats<Element>(*reinterpret_cast<chunk const*>(from + q), to);
    } else {
#pragma unroll
      for (int i = 0; i < width; ++i) to[i] = q + i < hidden ? static_cast<float>(from[q + i]) : 0.0f;
    }
  }
  __device__ static void write(Element* to, bool by_chunks, int q, int hidden, float const (&from)[width]) {
    if (by_chunks && q + width <= hidden) {
      *reinterpret_cast<chunk*>(to + q) = from_floats<Element>(from);
    } else {
#pragma unroll
      for (int i = 0; i < width; ++i) {
        if (q + i < hidden) to[q + i] = Element(from[i]);
      }
    }
  }
  /// As many floats.
  __device__ static void read_floats(float const* from, bool by_chunks, int q, int hidden, float (&to)[width]) {
    if (by_chunks && q + width <= hidden) {
#pragma unroll
      for (int i = 0; i < width; i += 4) {
        float4 const four = *reinterpret_cast<float4 const*>(from + q + i);
        to[i] = four.x;
        to[i + 1] = four.y;
        to[i + 2] = four.z;
        to[i + 3] = four.w;
      }
    } else {
#pragma unroll
      for (int i = 0; i < width; ++i) to[i] = q + i < hidden ? from[q + i] : 0.0f;
    }
  }
};

/// The layer norm of a row, of which each thread has some chunks; the row before it goes to `sums`, where that is not null.
template <class Element, int Turns>
__device__ __forceinline__ void normalise(float (&values)[Turns][row_chunk<Element>::width], layer_norm const& norm,
                                          bool aligned, int hidden, Element* sums) {
  using chunks = row_chunk<Element>;
  constexpr int width = chunks::width;
  int const thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  auto const mean_of = [&](auto const& term) {
    float sum = 0.0f;
#pragma unroll
    for (int turn = 0; turn < Turns; ++turn) {
#pragma unroll
      for (int i = 0; i < width; ++i) {
        if ((turn * threads + thread) * width + i < hidden) sum += term(values[turn][i]);
      }
    }
    return sum_over_block<most_combine_threads / 32>(sum) / static_cast<float>(hidden);
  };
  float const mean = mean_of([](float value) { return value; });
  float const variance = mean_of([mean](float value) { return (value - mean) * (value - mean); });
  float const scale = 1.0f / std::sqrt(variance + norm.epsilon);
#pragma unroll
  for (int turn = 0; turn < Turns; ++turn) {
    int const q = (turn * threads + thread) * width;
    if (q >= hidden) continue;
    if (sums != nullptr) chunks::write(sums, true, q, hidden, values[turn]);
    float weight[width], bias[width];
    chunks::read_floats(norm.weight, aligned, q, hidden, weight);
    chunks::read_floats(norm.bias, aligned, q, hidden, bias);
#pragma unroll
    for (int i = 0; i < width; ++i) values[turn][i] = (values[turn][i] - mean) * scale * weight[i] + bias[i];
  }
}

/// Adds the residual to a row of the pass, normalises it, and brings it back to its token, which goes to its next stratum.
/// A block per row; the first one also adds up what the passes counted. Blocks that share a multiprocessor are said, because
/// the compiler else saves registers for more, and spills.
template <class Element, int Strata, int Turns>
__global__ void __launch_bounds__(most_combine_threads, Turns <= 4 ? 4 : 1)
    finish_pass(strata_args<Element> const args, strata_above<Strata> const above) {
  using chunks = row_chunk<Element>;
  constexpr int strata = Strata, width = chunks::width;
  int const hidden = args.pass.hidden, top_k = args.top_k, stratum = args.stratum, first_expert = args.first_expert;
  strata_record<Element> const& record = args.record;
  std::int64_t const row = blockIdx.x, tokens = args.tokens.rows;
  int const thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);

  if (row == 0) add_counts(args);
  if (row >= record.sizes[stratum].tokens) return;

  std::int64_t const token = record.token_of[row];
  std::int32_t const first_choice = record.experts[row * args.pass.top_k];
  // A token that could not be routed is a NaN by now, and done.
  int next = first_choice < 0 ? strata : 1;
#pragma unroll
  for (int i = 1; i < strata; ++i) {
    if (first_choice >= 0 && first_expert + first_choice >= above.first_expert[i]) next = i + 1;
  }
  Element const* const result = record.rows + row * record.stride;
  Element* const output = args.output.row(token);
  Element* const before_norm = record.sums == nullptr ? nullptr : record.sums + token * record.stride;
  Element const* const residual = stratum == 0             ? args.residual.row(token)
                                  : before_norm == nullptr ? output
                                                           : before_norm;
  bool const residual_by_chunks = stratum == 0 ? args.aligned_residual : before_norm != nullptr || args.aligned_output;

  float values[Turns][width];
#pragma unroll
  for (int turn = 0; turn < Turns; ++turn) {
    int const q = (turn * threads + thread) * width;
    if (q >= hidden) continue;
    float added[width];
    chunks::read(result, true, q, hidden, values[turn]);
    chunks::read(residual, residual_by_chunks, q, hidden, added);
#pragma unroll
    for (int i = 0; i < width; ++i) values[turn][i] += added[i];
  }
  if (above.normalises) {
    // An index that only the device knows would put the arguments into local memory.
    layer_norm norm = above.norm.after[0];
#pragma unroll
    for (int i = 1; i < strata; ++i) {
      if (next == i + 1) norm = above.norm.after[i];
    }
    normalise<Element>(values, norm, above.aligned_norms, hidden, before_norm);
  }
#pragma unroll
  for (int turn = 0; turn < Turns; ++turn) {
    int const q = (turn * threads + thread) * width;
    if (q < hidden) chunks::write(output, args.aligned_output, q, hidden, values[turn]);
  }

  if (thread == 0) {
    record.stratum[token] = static_cast<std::uint8_t>(next);
    if (args.passes != nullptr) args.passes[token] += 1;
  }
  for (int k = thread; k < top_k; k += threads) {
    std::int64_t const from = row * args.pass.top_k + k, to = (stratum * tokens + token) * top_k + k;
    bool const has = k < args.pass.top_k, chosen = has && record.experts[from] >= 0;
    if (args.decisions.experts != nullptr)
      args.decisions.experts[to] = chosen ? first_expert + record.experts[from] : -1;
    if (args.decisions.weights != nullptr) args.decisions.weights[to] = has ? record.weights[from] : 0.0f;
    if (args.decisions.dropped != nullptr) args.decisions.dropped[to] = has ? record.dropped[from] : 0;
  }
}

/// A layer that runs over its tokens pass by pass: gathers the tokens of a stratum, runs the layer of its experts and those above, and
/// brings the tokens back.
template <router::stratum_form Form, int... Experts, class Products>
struct schedule_step<router::climbing<Form, Experts...>, Products> {
  using schedule = router::climbing<Form, Experts...>;
  using one_pass = schedule_step<router::one_pass, Products>;
  static constexpr int strata = schedule::strata;

  template <class Layer, int Stratum>
  using pass_memory = typename one_pass::template memory<dispatch::pass_layer<Layer, Stratum>>;

  template <class Layer>
  struct memory : strata_record<typename Layer::element> {
    std::byte* of_pass;  // in turn of each

    constexpr memory(carver& from, std::int64_t tokens) {
      using element = typename Layer::element;
      constexpr shape dims = Layer::dims;
      std::int64_t const pairs = tokens * dims.top_k;
      this->stride = padded<element>(dims.hidden);
      this->sizes = from.take<pass_size>(strata);
      this->token_of = from.take<std::int32_t>(tokens);
      this->stratum = from.take<std::uint8_t>(tokens);
      this->rows = from.take<element>(tokens * this->stride);
      this->sums = nullptr;
      if constexpr (Form.norms && !Form.normalised_residual) this->sums = from.take<element>(tokens * this->stride);
      this->experts = from.take<std::int32_t>(pairs);
      this->weights = from.take<float>(pairs);
      this->dropped = from.take<std::uint8_t>(pairs);
      this->counts = from.take<std::int64_t>(dims.experts);
      this->load = from.take<std::int64_t>(dims.experts);
      this->auxiliary = from.take<auxiliary_values>(strata);
      of_pass = from.take<std::byte>(dispatch::bytes_of_largest_pass<Layer, one_pass::template memory>(tokens));
    }
  };

  template <class Layer>
  static void enqueue(forward_args<Layer> const& args, launch_queue const& queue, memory<Layer> const& m) {
    dispatch::for_each_pass<Layer>([&]<int Stratum>() { enqueue_pass<Stratum>(args, queue, m); });
  }

 private:
  template <int Stratum, class Layer>
  static void enqueue_pass(forward_args<Layer> const& args, launch_queue const& queue, memory<Layer> const& m) {
    using pass = dispatch::pass_layer<Layer, Stratum>;
    using element = typename Layer::element;
    constexpr int hidden = Layer::dims.hidden;
    std::int64_t const tokens = args.tokens.rows;
    strata_args<element> const strata_of_call{.strata = strata,
                                              .top_k = Layer::dims.top_k,
                                              .stratum = Stratum,
                                              .first_expert = schedule::first_expert(Stratum),
                                              .pass = pass::dims,
                                              .tokens = args.tokens,
                                              .residual = args.inputs.residual,
                                              .output = args.output,
                                              .aligned_tokens = is_aligned(args.tokens),
                                              .aligned_residual = is_aligned(args.inputs.residual),
                                              .aligned_output = is_aligned(args.output),
                                              .active = args.active,
                                              .decisions = args.decisions,
                                              .passes = args.report.passes,
                                              .auxiliary = args.auxiliary,
                                              .record = m};
    std::int64_t const blocks = tokens == 0 ? 1 : tokens;  // the counts of no token are written, too
    launch(queue, "gather_stratum", gather_stratum<element>, divide_up(blocks, gathered_tokens), gather_threads, 0,
           strata_of_call);
    forward_args<pass> of_pass = dispatch::pass_args<Stratum>(args);
    of_pass.tokens = {m.rows, tokens, hidden, m.stride};
    of_pass.output = {m.rows, tokens, hidden, m.stride};
    of_pass.decisions = {m.experts, m.weights, m.dropped, m.counts, m.load};
    if (args.auxiliary != nullptr) of_pass.auxiliary = m.auxiliary + Stratum;
    carver split(m.of_pass);
    pass_memory<Layer, Stratum> const memory_of_pass(split, tokens);
    one_pass::template enqueue<pass>(of_pass, queue, memory_of_pass, m.sizes + Stratum);
    launch(queue, "finish_pass", finish_pass<element, strata, finish_turns<element>(hidden)>, blocks,
           combine_threads<element>(hidden), 0, strata_of_call, above(args));
  }

  template <class Layer>
  static strata_above<strata> above(forward_args<Layer> const& args) {
    strata_above<strata> result{.first_expert = {}, .normalises = Form.norms, .aligned_norms = true, .norm = {}};
    for (int i = 0; i < strata; ++i) result.first_expert[i] = schedule::first_expert(i);
    if constexpr (Form.norms) {
      result.norm = args.inputs.norm;
      for (layer_norm const& norm : result.norm.after) {
        result.aligned_norms = result.aligned_norms && is_aligned(norm.weight, 0) && is_aligned(norm.bias, 0);
      }
    }
    return result;
  }
};

}  // namespace switchyard::cuda
