#pragma once

#include <switchyard/backend/cuda/alignment.cuh>
#include <switchyard/backend/cuda/auxiliary.cuh>
#include <switchyard/backend/cuda/block_sums.cuh>
#include <switchyard/backend/cuda/instructions.cuh>
#include <switchyard/backend/cuda/launch.cuh>
#include <switchyard/backend/cuda/pair_sets.cuh>
#include <switchyard/backend/cuda/pass_size.cuh>
#include <switchyard/backend/cuda/steps.cuh>
#include <switchyard/backend/cuda/temporaries.cuh>
#include <switchyard/backend/cuda/warp_lanes.cuh>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/finite.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/layer.hpp>
#include <switchyard/router/by_logits.hpp>
#include <switchyard/router/with_router_input.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

/// Step 1 of `backend::cuda`: tokens to logits to expert ids and combine weights, in one kernel.
namespace switchyard::cuda {

/// What routing writes, all on the device.
struct route_results {
  std::int32_t* experts;   ///< [tokens, top_k]
  float* weights;          ///< [tokens, top_k]
  float* priority;         ///< [tokens], null: nobody asks
  pair_sets chosen;        ///< a block has a token block; words are null where nothing is planned
  pair_sets kept, sorted;  ///< the same and empty, for a plan that changes them; null: nobody asks
  std::int32_t* below;     ///< [experts, token_blocks]: pairs of the token block that chose a lower expert; or null
  std::int32_t* row_of;    ///< [tokens, top_k]: -1 where a pair goes nowhere; null: nobody asks
  std::uint8_t* dropped;   ///< [tokens, top_k]: zeros, null: nobody asks
};

/// Weights of the features of tokens, a row of a table for each label.
struct scaled_features {
  float const* table = nullptr;  ///< [experts, hidden]
  std::int32_t const* labels =
      nullptr;  ///< [tokens, label_stride]: the first says a token's row; no expert: it has none
  int label_stride = 1;
  bool aligned = false;  ///< 16-byte copies may be used
};

/// What `route_tokens` reads and writes, all on the device. The router weight is stored as `Weight`.
template <class Element, class Weight = float>
struct route_args {
  view<Element const> tokens;
  pass_size const* pass;                ///< null: all tokens
  Weight const* weight;                 ///< [experts, columns of tokens]
  router_weights router;                ///< its biases
  std::uint8_t const* active;           ///< null: all
  bool aligned_tokens, aligned_router;  ///< 16-byte copies may be used
  scaled_features features;             ///< read where the router's features are scaled
  float const* inverse_lengths;         ///< [experts], factors of the logits; null: none
  float* logits;                        ///< [tokens, experts], null: nobody asks
  route_results results;
};

/// The sets of one token block while its block collects them in shared memory.
template <int Threads>
struct token_block_sets {
  std::uint32_t* words;  ///< [experts, block_words]
  int block_words;

  static constexpr int bytes(int experts, int block_pairs) { return experts * ((block_pairs + 31) / 32) * 4; }

  __device__ void clear(int experts) const {
    for (int i = static_cast<int>(threadIdx.x); i < experts * block_words; i += Threads) words[i] = 0;
  }

  /// Says where a pair goes, by its number in the token block; an expert of -1 is nowhere.
  __device__ void add(int expert, int number, std::int64_t pair, route_results const& results) const {
    results.experts[pair] = expert;
    if (expert >= 0) {
      atomicOr(words + expert * block_words + number / 32, 1u << number % 32);
    } else if (results.row_of != nullptr) {
      results.row_of[pair] = -1;
    }
    if (results.dropped != nullptr) results.dropped[pair] = 0;
  }

  /// Writes the token block of this block, when all have added theirs.
  __device__ void write(int experts, route_results const& results) const {
    if (results.chosen.words == nullptr) return;
    int const thread = static_cast<int>(threadIdx.x);
    std::int64_t const stride = results.chosen.words_per_expert(), first = std::int64_t{blockIdx.x} * block_words;
    for (int i = thread; i < experts * block_words; i += Threads) {
      std::int64_t const at = i / block_words * stride + first + i % block_words;
      results.chosen.words[at] = words[i];
      if (results.kept.words != nullptr) results.kept.words[at] = words[i];
      if (results.sorted.words != nullptr) results.sorted.words[at] = 0;
    }
    if (results.below == nullptr) return;
    std::int32_t below = 0;
    for (int begin = 0; begin < experts; begin += Threads) {
      int const e = begin + thread;
      std::int32_t count = 0;
      for (int w = 0; e < experts && w < block_words; ++w) count += __popc(words[e * block_words + w]);
      scanned const scan = scan_block<Threads>(count);
      if (e < experts) results.below[e * results.chosen.token_blocks + blockIdx.x] = below + scan.before;
      below += scan.all;
    }
  }
};

/// What `route_tokens` is compiled for. The width of a token is an argument.
template <class Element, class Router, int Experts, int TopK, class Inputs>
struct routing_of {
  using element = Element;
  using router = Router;
  using weight_element = typename Router::weight_element;
  using inputs = Inputs;  ///< that the router's decisions see, or none
  using args = route_args<Element, weight_element>;
  static constexpr int experts = Experts, top_k = TopK;
  static constexpr bool scales = feature_step<typename Router::features>::scales;
};
template <class Layer>
using layer_routing = routing_of<typename Layer::element, typename Layer::router, Layer::all_experts, Layer::dims.top_k,
                                 std::conditional_t<decides_by_inputs<typename Layer::router>,
                                                    typename Layer::router::template inputs<Layer>, no_choices>>;

/// How a block of `route_tokens` is cut. Sixteen tokens, or a multiple of them, meet all experts, `sweep` experts at a time;
/// warps share the experts of a sweep, and the depth of the product where there are few experts.
template <class Routing, int TokenBlocks>
struct route_tile {
  using element = typename Routing::element;
  using weight_element = typename Routing::weight_element;
  static constexpr int experts = Routing::experts;
  static constexpr int threads = 256, warps = threads / 32;
  static constexpr int tokens = 16 * TokenBlocks;
  static constexpr int depth = 32;  // features per stage: 128 bytes of a router weight of floats
  static constexpr int most = experts <= 512 ? experts : 256;
  static constexpr int expert_warps = most <= 128 ? 2 : most <= 256 ? 4 : 8;
  static constexpr int depth_warps = warps / expert_warps;
  static constexpr int blocks = static_cast<int>(divide_up(most, 8 * expert_warps));  // of 8 experts, per warp
  static constexpr int sweep = blocks * 8 * expert_warps;

  static constexpr int token_chunks = depth * static_cast<int>(sizeof(element)) / chunk_bytes;  // of a line
  static constexpr int weight_chunks = depth * static_cast<int>(sizeof(weight_element)) / chunk_bytes;
  static constexpr int weight_copies = static_cast<int>(divide_up(sweep * weight_chunks, threads));
  static constexpr bool scales = Routing::scales;
  static constexpr int token_tile = tokens * token_chunks * chunk_bytes;
  static constexpr int scale_tile = scales ? tokens * weight_chunks * chunk_bytes : 0;  // a line of floats per token
  static constexpr int stage_bytes = token_tile + scale_tile + weight_copies * threads * chunk_bytes;
  static constexpr int wanted_stages = 64 * 1024 / stage_bytes;
  static constexpr int stages = wanted_stages < 2 ? 2 : wanted_stages > 4 ? 4 : wanted_stages;
  static constexpr int partial_pitch = sweep + 8;  // floats; shifts rows by 8 banks
  static constexpr int partial_bytes = depth_warps * tokens * partial_pitch * 4;
  static constexpr int block_pairs = tokens * Routing::top_k;
  static constexpr int set_bytes = token_block_sets<threads>::bytes(experts, block_pairs);
  static constexpr int largest(int a, int b) { return a > b ? a : b; }
  // The stages make room for the sums of the warps, and those for the sets of pairs.
  static constexpr int work_bytes = largest(stages * stage_bytes, largest(partial_bytes, (set_bytes + 15) / 16 * 16));
  static constexpr int logits_bytes = tokens * experts * 4;
  static constexpr std::size_t shared_bytes = static_cast<std::size_t>(work_bytes) + logits_bytes;
  static constexpr int resident = TokenBlocks * blocks < 16 ? 2 : 1;  // blocks per multiprocessor, for their registers
  static_assert(!scales || sizeof(weight_element) == 4, "weights of features are floats, as many as a router weight");
  static_assert(tokens * token_chunks <= threads, "a thread has at most one copy of the tokens");
  static_assert(tokens * weight_chunks <= threads, "a thread has at most one copy of the weights of features");
};

// Rows of a stage are 64 or 128 bytes long. The swizzles below put what one instruction reads into different banks: a
// warp reads 4 bytes (two-byte elements) or 8 bytes (floats) of each of 4 lanes from 8 rows.
template <int ElementBytes>
__device__ int swizzled_line(int row, int chunk_index) {
  return ElementBytes == 2 ? row * 64 + ((chunk_index ^ ((row >> 1) & 3)) * chunk_bytes)
                           : row * 128 + ((chunk_index ^ ((row & 3) << 1)) * chunk_bytes);
}

/// Two neighbouring elements of a token in shared memory as floats.
template <class Element>
__device__ float2 load_pair(char const* from) {
  if constexpr (sizeof(Element) == 2) {
    return unpack(Element{}, *reinterpret_cast<std::uint32_t const*>(from));
  } else {
    return *reinterpret_cast<float2 const*>(from);
  }
}

/// Writes 16 bytes of shared memory from elements at any address: at most `count` of them, then zeros.
template <class Element>
__device__ void copy_elements(char* to, Element const* from, int count) {
  constexpr int size = chunk_bytes / static_cast<int>(sizeof(Element));
  alignas(16) Element values[size];
#pragma unroll
  for (int i = 0; i < size; ++i) values[i] = i < count ? from[i] : Element(0.0f);
  *reinterpret_cast<chunk*>(to) = *reinterpret_cast<chunk const*>(values);
}

/// The tokens of one block.
template <class Args>
struct block_tokens {
  Args const& args;
  std::int64_t first;
  int count;

  __device__ bool is_active(int row) const { return args.active == nullptr || args.active[first + row] != 0; }
  /// The row of the table of weights of features that a token has, if there is one.
  __device__ std::int32_t label_of(int row) const {
    return args.features.labels[(first + row) * args.features.label_stride];
  }
  __device__ bool has_label(int row, int experts) const { return label_of(row) >= 0 && label_of(row) < experts; }
};

/// Fills the stages of the router product: a thread has 16 bytes of one token, of the weights of one token's features, and of some
/// experts' rows.
template <class Routing, int TokenBlocks>
class route_stage_filler {
  using element = typename Routing::element;
  using weight_element = typename Routing::weight_element;
  using tile = route_tile<Routing, TokenBlocks>;
  static constexpr int element_chunk = chunk_bytes / static_cast<int>(sizeof(element));
  static constexpr int weight_chunk_size = chunk_bytes / static_cast<int>(sizeof(weight_element));
  static constexpr int rows_apart = tile::threads / tile::weight_chunks;

 public:
  __device__ explicit route_stage_filler(block_tokens<typename Routing::args> const& tokens)
      : args_(tokens.args), hidden_(static_cast<int>(tokens.args.tokens.columns)) {
    token_copy_.set(0, token_row() < tokens.count ? args_.tokens.row(tokens.first + token_row()) : nullptr,
                    token_chunk() * element_chunk, args_.tokens.data);
    if constexpr (tile::scales) {
      int const row = weight_row();
      bool const scaled = row < tokens.count && tokens.is_active(row) && tokens.has_label(row, Routing::experts);
      scale_copy_.set(0, scaled ? args_.features.table + std::int64_t{tokens.label_of(row)} * hidden_ : nullptr,
                      weight_chunk() * weight_chunk_size, args_.features.table);
    }
  }

  __device__ void begin_sweep(int first_expert) {
    weight_copies_ = {};
    for (int i = 0; i < tile::weight_copies; ++i) {
      int const row = weight_row() + i * rows_apart, e = first_expert + row;
      bool const exists = row < tile::sweep && e < Routing::experts;
      weight_copies_.set(i, exists ? args_.weight + std::int64_t{e} * hidden_ : nullptr,
                         weight_chunk() * weight_chunk_size, args_.weight);
    }
  }

  __device__ void fill(char* stage, int step) const {
    int const k = step * tile::depth;
    if (thread() < tile::tokens * tile::token_chunks) {
      fill_one(stage + swizzled_line<sizeof(element)>(token_row(), token_chunk()), token_copy_, args_.aligned_tokens, k,
               hidden_ - k - token_chunk() * element_chunk);
    }
    int const rest = hidden_ - k - weight_chunk() * weight_chunk_size;
    if constexpr (tile::scales) {
      if (thread() < tile::tokens * tile::weight_chunks) {
        fill_one(stage + tile::token_tile + swizzled_line<4>(weight_row(), weight_chunk()), scale_copy_,
                 args_.features.aligned, k, rest);
      }
    }
    constexpr int pitch = rows_apart * tile::weight_chunks * chunk_bytes;
    if (tile::weight_copies == 1 && weight_row() >= tile::sweep) return;
    char* const to = stage + tile::token_tile + tile::scale_tile +
                     swizzled_line<sizeof(weight_element)>(weight_row(), weight_chunk());
    if (args_.aligned_router) {
      weight_copies_.enqueue(shared_address(to), pitch, k, rest);
    } else {
      for (int i = 0; i < tile::weight_copies; ++i) {
        copy_elements(to + i * pitch, weight_copies_.from[i] + k, (weight_copies_.present >> i & 1u) != 0 ? rest : 0);
      }
    }
  }

 private:
  __device__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ static int token_row() { return thread() / tile::token_chunks; }
  __device__ static int token_chunk() { return thread() % tile::token_chunks; }
  __device__ static int weight_row() { return thread() / tile::weight_chunks; }
  __device__ static int weight_chunk() { return thread() % tile::weight_chunks; }

  template <class T>
  __device__ static void fill_one(char* to, row_copies<T, 1> const& copy, bool aligned, int k, int rest) {
    if (aligned) {
      copy.enqueue(shared_address(to), 0, k, rest);
    } else {
      copy_elements(to, copy.from[0] + k, copy.present != 0 ? rest : 0);
    }
  }

  typename Routing::args const& args_;
  int hidden_;
  row_copies<element, 1> token_copy_;
  row_copies<float, 1> scale_copy_;
  row_copies<weight_element, tile::weight_copies> weight_copies_;
};

/// sums += this warp's part of a stage: its experts, and its share of the depth.
template <class Routing, int TokenBlocks>
__device__ __forceinline__ void multiply_route_stage(
    float (&sums)[TokenBlocks][route_tile<Routing, TokenBlocks>::blocks][4], char const* stage) {
  using element = typename Routing::element;
  using weight_element = typename Routing::weight_element;
  using tile = route_tile<Routing, TokenBlocks>;
  int const warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  int const expert_warp = warp % tile::expert_warps, depth_warp = warp / tile::expert_warps;
#pragma unroll
  for (int part = 0; part < 4 / tile::depth_warps; ++part) {
    // A product of depth 8 takes features in any order, if both factors keep to it: lane t of a row of lanes has
    // the features 2 t and 2 t + 1, which stand side by side.
    int const eighth = part * tile::depth_warps + depth_warp, pair = lane % 4;
    std::uint32_t high[TokenBlocks][4], low[TokenBlocks][4];
#pragma unroll
    for (int i = 0; i < 2 * TokenBlocks; ++i) {
      int const row = lane / 4 + 8 * i;
      int const at = sizeof(element) == 2 ? swizzled_line<2>(row, eighth) + pair * 4
                                          : swizzled_line<4>(row, 2 * eighth + pair / 2) + pair % 2 * 8;
      float2 values = load_pair<element>(stage + at);
      if constexpr (tile::scales) {
        float2 const scale =
            load_pair<float>(stage + tile::token_tile + swizzled_line<4>(row, 2 * eighth + pair / 2) + pair % 2 * 8);
        values.x *= scale.x;
        values.y *= scale.y;
      }
      tf32_parts const first(__float_as_uint(values.x)), second(__float_as_uint(values.y));
      high[i / 2][i % 2] = first.high;
      high[i / 2][i % 2 + 2] = second.high;
      low[i / 2][i % 2] = first.low;
      low[i / 2][i % 2 + 2] = second.low;
    }
#pragma unroll
    for (int b = 0; b < tile::blocks; ++b) {
      int const row = (expert_warp * tile::blocks + b) * 8 + lane / 4;
      int const at = tile::token_tile + tile::scale_tile +
                     (sizeof(weight_element) == 2 ? swizzled_line<2>(row, eighth) + pair * 4
                                                  : swizzled_line<4>(row, 2 * eighth + pair / 2) + pair % 2 * 8);
      float2 const weight = load_pair<weight_element>(stage + at);
      tf32_parts const first(__float_as_uint(weight.x)), second(__float_as_uint(weight.y));
#pragma unroll
      for (int i = 0; i < TokenBlocks; ++i) {
        // The low parts of two-byte elements are zeros, which a sum keeps its bits with.
        if constexpr (sizeof(weight_element) == 4) multiply_tf32(sums[i][b], high[i], first.low, second.low);
        // Two-byte elements are tf32 numbers already.
        if constexpr (sizeof(element) == 4 || tile::scales) multiply_tf32(sums[i][b], low[i], first.high, second.high);
        multiply_tf32(sums[i][b], high[i], first.high, second.high);
      }
    }
  }
}

/// The sums of all warps to the logits of a sweep of experts. `memory` was that of the stages, and all have read them.
template <class Routing, int TokenBlocks>
__device__ __forceinline__ void write_logits(
    float const (&sums)[TokenBlocks][route_tile<Routing, TokenBlocks>::blocks][4],
    block_tokens<typename Routing::args> const& tokens, int first_expert, char* memory, float* logits) {
  using tile = route_tile<Routing, TokenBlocks>;
  constexpr int experts = Routing::experts;
  typename Routing::args const& args = tokens.args;
  int const thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  int const expert_warp = warp % tile::expert_warps, depth_warp = warp / tile::expert_warps;
  float* const partial = reinterpret_cast<float*>(memory);  // [depth warps, tokens, experts of this sweep]
#pragma unroll
  for (int i = 0; i < TokenBlocks; ++i) {
#pragma unroll
    for (int b = 0; b < tile::blocks; ++b) {
      int const column = (expert_warp * tile::blocks + b) * 8 + lane % 4 * 2;
      float* const to = partial + (depth_warp * tile::tokens + 16 * i + lane / 4) * tile::partial_pitch + column;
      *reinterpret_cast<float2*>(to) = make_float2(sums[i][b][0], sums[i][b][1]);
      *reinterpret_cast<float2*>(to + 8 * tile::partial_pitch) = make_float2(sums[i][b][2], sums[i][b][3]);
    }
  }
  __syncthreads();
  int const count = experts - first_expert < tile::sweep ? experts - first_expert : tile::sweep;
  for (int i = thread; i < tokens.count * count; i += tile::threads) {
    int const token = i / count, e = i % count;
    float sum = 0.0f;
    for (int d = 0; d < tile::depth_warps; ++d) {
      sum += partial[(d * tile::tokens + token) * tile::partial_pitch + e];
    }
    if (args.inverse_lengths != nullptr) sum *= args.inverse_lengths[first_expert + e];
    if (args.router.bias != nullptr) sum += args.router.bias[first_expert + e];
    if constexpr (tile::scales) {  // a label that does not exist leaves the router without logits
      if (tokens.is_active(token) && !tokens.has_label(token, experts)) sum = not_a_number;
    }
    logits[token * experts + first_expert + e] = sum;
    if (args.logits != nullptr) args.logits[(tokens.first + token) * experts + first_expert + e] = sum;
  }
  __syncthreads();
}

/// The logits of a block's tokens to their routes, a warp per token. `memory` was that of the sums.
template <class Routing, int TokenBlocks>
__device__ __forceinline__ void decide_routes(block_tokens<typename Routing::args> const& tokens,
                                              typename Routing::inputs const& inputs, char* memory,
                                              float const* logits) {
  using tile = route_tile<Routing, TokenBlocks>;
  constexpr int experts = Routing::experts, top_k = Routing::top_k;
  route_results const& results = tokens.args.results;
  int const warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  token_block_sets<tile::threads> const sets{reinterpret_cast<std::uint32_t*>(memory), results.chosen.block_words()};
  sets.clear(experts);
  __syncthreads();
  using share = per_expert<experts, warp_lanes>;
  warp_lanes const lanes{};
  for (int t = warp; t < tokens.count; t += tile::warps) {
    std::int64_t const token = tokens.first + t;
    bool const active = tokens.is_active(t);
    route<top_k> decided{};
    if (active) {  // the same for all lanes
      share values;
#pragma unroll
      for (int i = 0; i < share::size; ++i) {
        int const e = share::expert(lanes, i);
        values.value[i] = e < experts ? logits[t * experts + e] : share::closed;
      }
      decided = decide<typename Routing::router, top_k>(lanes, values, tokens.args.router, inputs, token);
    }
#pragma unroll
    for (int first = 0; first < top_k; first += 32) {  // a lane writes a pair
      int expert = -1;
      float weight = 0.0f;
#pragma unroll
      for (int k = first; k < top_k && k < first + 32; ++k) {
        if (lane != k - first) continue;
        expert = decided.expert[k];
        weight = decided.weight[k];
      }
      int const k = first + lane;
      if (k >= top_k) continue;
      bool const exists = active && expert >= 0 && expert < experts;  // a user's router may answer anything
      sets.add(exists ? expert : -1, t * top_k + k, token * top_k + k, results);
      results.weights[token * top_k + k] = !active ? 0.0f : exists ? weight : not_a_number;
    }
    if (results.priority != nullptr && lane == 0) results.priority[token] = active ? decided.priority : 0.0f;
  }
  __syncthreads();
  sets.write(experts, results);
}

/// The tokens of this block; none where the count is not positive.
template <class Tile, class Args>
__device__ __forceinline__ block_tokens<Args> tokens_of_block(Args const& args) {
  std::int64_t const first = static_cast<std::int64_t>(blockIdx.x) * Tile::tokens;
  std::int64_t const left = tokens_at_hand(args.tokens.rows, args.pass) - first;
  return {args, first, left < 0 ? 0 : left < Tile::tokens ? static_cast<int>(left) : Tile::tokens};
}

/// The logits [tokens, experts] of a block's tokens. `memory` has room for the stages.
template <class Routing, int TokenBlocks>
__device__ __forceinline__ void make_logits(block_tokens<typename Routing::args> const& tokens, char* memory,
                                            float* logits) {
  using tile = route_tile<Routing, TokenBlocks>;
  int const steps = static_cast<int>(divide_up(tokens.args.tokens.columns, tile::depth));
  route_stage_filler<Routing, TokenBlocks> filler(tokens);

  for (int first_expert = 0; first_expert < Routing::experts; first_expert += tile::sweep) {
    filler.begin_sweep(first_expert);
    float sums[TokenBlocks][tile::blocks][4] = {};
    // Steps before the first one fill all stages but one: the code that fills is there once.
#pragma unroll 1
    for (int step = 1 - tile::stages; step < steps; ++step) {
      if (step >= 0) {
        wait_for_copies<tile::stages - 2>();
        __syncthreads();  // the stage has come for all, and the one to be filled next was read by all
      }
      int const ahead = step + tile::stages - 1;
      if (ahead < steps) filler.fill(memory + ahead % tile::stages * tile::stage_bytes, ahead);
      commit_copies();
      if (step >= 0) {
        multiply_route_stage<Routing, TokenBlocks>(sums, memory + step % tile::stages * tile::stage_bytes);
      }
    }
    wait_for_copies<0>();
    __syncthreads();  // stages make room for the sums
    write_logits<Routing, TokenBlocks>(sums, tokens, first_expert, memory, logits);
  }
}

/// A block's tokens to their routes.
///
/// tokens, router weight --copies--> stages in shared memory --tensor cores--> sums of each warp --> logits in shared
/// memory --a warp per token--> route. The product is one of floats: both factors are cut into tf32 parts.
template <class Routing, int TokenBlocks>
__global__ void __launch_bounds__(route_tile<Routing, TokenBlocks>::threads, route_tile<Routing, TokenBlocks>::resident)
    route_tokens(typename Routing::args const args, typename Routing::inputs const inputs) {
  using tile = route_tile<Routing, TokenBlocks>;
  extern __shared__ __align__(128) char memory[];
  float* const logits = reinterpret_cast<float*>(memory + tile::work_bytes);  // [tokens, experts]
  auto const tokens = tokens_of_block<tile>(args);
  if (tokens.count == 0) return;
  make_logits<Routing, TokenBlocks>(tokens, memory, logits);
  decide_routes<Routing, TokenBlocks>(tokens, inputs, memory, logits);
}

/// A block's tokens to their logits in memory: the first half of `route_tokens`.
template <class Routing, int TokenBlocks>
__global__ void __launch_bounds__(route_tile<Routing, TokenBlocks>::threads, route_tile<Routing, TokenBlocks>::resident)
    tokens_to_logits(typename Routing::args const args) {
  using tile = route_tile<Routing, TokenBlocks>;
  extern __shared__ __align__(128) char memory[];
  auto const tokens = tokens_of_block<tile>(args);
  if (tokens.count == 0) return;
  make_logits<Routing, TokenBlocks>(tokens, memory, reinterpret_cast<float*>(memory + tile::work_bytes));
}

/// A block's logits in memory to their routes: the second half.
template <class Routing, int TokenBlocks>
__global__ void __launch_bounds__(route_tile<Routing, TokenBlocks>::threads)
    choose_experts(typename Routing::args const args, typename Routing::inputs const inputs) {
  using tile = route_tile<Routing, TokenBlocks>;
  extern __shared__ __align__(128) char memory[];
  auto const tokens = tokens_of_block<tile>(args);
  if (tokens.count == 0) return;
  decide_routes<Routing, TokenBlocks>(tokens, inputs, memory, args.logits + tokens.first * Routing::experts);
}

/// How `take_pairs` is cut: a block takes over the routes of a token block of the tokens, a thread per pair.
struct take_pairs_tile {
  static constexpr int threads = 128, tokens = 32;
  static constexpr std::size_t shared_bytes(int experts, int top_k) {
    return token_block_sets<threads>::bytes(experts, tokens * top_k);
  }
};

/// Asks a router by inputs about every pair. An id of -1 goes nowhere, and so does one that does not exist, which shows as NaN.
template <class Router, class Inputs, class Tile>
__global__ void __launch_bounds__(Tile::threads)
    take_pairs(Inputs const from, std::int64_t tokens, int experts, int top_k, std::uint8_t const* active,
               route_results const results) {
  extern __shared__ __align__(128) char memory[];
  token_block_sets<Tile::threads> const sets{reinterpret_cast<std::uint32_t*>(memory), results.chosen.block_words()};
  sets.clear(experts);
  __syncthreads();
  int const block_pairs = Tile::tokens * top_k;
  std::int64_t const first = std::int64_t{blockIdx.x} * block_pairs;
  for (int i = static_cast<int>(threadIdx.x); i < block_pairs; i += Tile::threads) {
    std::int64_t const pair = first + i, token = pair / top_k;
    if (token >= tokens) break;
    routed_pair asked{-1, 0.0f};
    if (active == nullptr || active[token] != 0) {
      asked = Router::pair(from, token, top_k, static_cast<int>(pair - token * top_k));
    }
    bool const exists = asked.expert >= 0 && asked.expert < experts;
    sets.add(exists ? asked.expert : -1, i, pair, results);
    results.weights[pair] = asked.expert == -1 ? 0.0f : exists ? asked.weight : not_a_number;
    if (results.priority != nullptr && i % top_k == 0) {
      results.priority[token] = is_finite(asked.weight) ? asked.weight : 0.0f;
    }
  }
  __syncthreads();
  sets.write(experts, results);
}

template <>
struct feature_step<router::features_as_they_are> {
  static constexpr bool scales = false;
  template <class Layer>
  struct memory {
    constexpr memory(carver&, std::int64_t) {}
  };
  template <class Layer>
  static void enqueue(forward_args<Layer> const&, launch_queue const&, memory<Layer> const&,
                      typename layer_routing<Layer>::args&) {}
  template <class Layer>
  static view<typename Layer::element const> tokens_of_experts(forward_args<Layer> const& args, memory<Layer> const&) {
    return args.tokens;
  }
};

template <int Width>
struct feature_step<router::features_of_the_caller<Width>> : feature_step<router::features_as_they_are> {
  template <class Layer>
  static void enqueue(forward_args<Layer> const& args, launch_queue const&, memory<Layer> const&,
                      typename layer_routing<Layer>::args& to) {
    to.tokens = args.inputs.tokens;
  }
};

/// Tokens times the router weight, and what the router makes of the logits.
template <>
struct route_step<router::from_logits> {
  template <class Layer>
  using features = feature_step<typename Layer::router::features>;

  template <class Layer>
  struct memory {
    float* logits;  // [tokens, experts], written for auxiliary values only
    typename features<Layer>::template memory<Layer> of_features;

    constexpr memory(carver& from, std::int64_t tokens)
        : logits(from.take<float>(tokens * Layer::all_experts)), of_features(from, tokens) {}
  };

  /// With more tokens in a block the router weight is read less often, with fewer there are more blocks, and they fit devices with less
  /// shared memory.
  static constexpr std::int64_t least_block_tokens = 16;
  template <class Layer>
  static constexpr std::int64_t block_tokens(std::int64_t tokens) {
    return tokens > 2048 && fits_everywhere<Layer>() ? 32 : 16;
  }

  template <class Layer>
  static void enqueue(forward_args<Layer> const& args, launch_queue const& queue, memory<Layer> const& m,
                      route_results const& results, pass_size const* pass) {
    using routing = layer_routing<Layer>;
    std::int64_t const tokens = args.tokens.rows;
    if (tokens == 0 && !routing::scales) return;
    typename layer_routing<Layer>::args const to = prepare(args, queue, m, results, pass);
    if (tokens == 0) return;
    typename routing::inputs const inputs = inputs_of(args);
    if constexpr (fits_everywhere<Layer>()) {
      if (block_tokens<Layer>(tokens) == 32) return enqueue_tile<routing, 2>(queue, to, inputs);
    }
    enqueue_tile<routing, 1>(queue, to, inputs);
  }

  /// What the kernel reads and writes; enqueues what has to be done before it.
  template <class Layer>
  static typename layer_routing<Layer>::args prepare(forward_args<Layer> const& args, launch_queue const& queue,
                                                     memory<Layer> const& m, route_results const& results,
                                                     pass_size const* pass) {
    typename layer_routing<Layer>::args to{.tokens = args.tokens,
                                           .pass = pass,
                                           .weight = router::weights_of(args).weight,
                                           .router = router::weights_of(args),
                                           .active = args.active,
                                           .aligned_tokens = false,
                                           .aligned_router = false,
                                           .features = {},
                                           .inverse_lengths = nullptr,
                                           .logits = logits_asked(args),
                                           .results = results};
    if constexpr (!Layer::router_traits.bias) to.router.bias = nullptr;
    if (args.auxiliary != nullptr && to.logits == nullptr) to.logits = m.logits;
    features<Layer>::template enqueue<Layer>(args, queue, m.of_features, to);
    to.aligned_tokens = is_aligned(to.tokens);
    to.aligned_router = is_aligned(to.weight, to.tokens.columns);
    return to;
  }

  /// What the router's decisions see of the call's `.inputs`.
  template <class Layer>
  static typename layer_routing<Layer>::inputs inputs_of(forward_args<Layer> const& args) {
    typename layer_routing<Layer>::inputs inputs{};
    if constexpr (decides_by_inputs<typename Layer::router>) inputs = args.inputs;
    return inputs;
  }

  template <class Tile>
  static constexpr void check_tile() {
    static_assert(Tile::shared_bytes <= most_shared_bytes,
                  "switchyard: backend::cuda keeps a block's logits in shared memory, which has no room for so many "
                  "experts. Use fewer experts, or router::precomputed.");
  }

  /// A block has room for twice sixteen tokens, on every device.
  template <class Layer>
  static constexpr bool fits_everywhere() {
    return route_tile<layer_routing<Layer>, 2>::shared_bytes <= least_shared_bytes;
  }

  template <class Layer>
  static void enqueue_auxiliary(forward_args<Layer> const& args, launch_queue const& queue, memory<Layer> const& m,
                                plan_memory const& plan, pass_size const* pass, double* log_sums) {
    if (args.auxiliary == nullptr) return;
    constexpr shape dims = Layer::dims;
    float const* const asked = logits_asked(args);
    launch(queue, "auxiliary_of_pass", auxiliary_of_pass<auxiliary_threads>, 1, auxiliary_threads,
           2 * Layer::all_experts * sizeof(double),
           routing_record{.tokens = args.tokens.rows,
                          .tokens_per_group = args.tokens_per_group,
                          .logits = asked != nullptr ? asked : m.logits,
                          .experts = plan.experts,
                          .weights = plan.weights,
                          .dropped = plan.dropped,
                          .active = args.active},
           Layer::all_experts, dims.top_k, pass, log_sums, args.auxiliary);
  }

  template <class Layer>
  static view<typename Layer::element const> tokens_of_experts(forward_args<Layer> const& args,
                                                               memory<Layer> const& m) {
    return features<Layer>::template tokens_of_experts<Layer>(args, m.of_features);
  }

 private:
  template <class Layer>
  static float* logits_asked(forward_args<Layer> const& args) {
    if constexpr (requires { *args.report.logits; }) return args.report.logits;
    return nullptr;
  }

  template <class Routing, int TokenBlocks>
  static void enqueue_tile(launch_queue const& queue, typename Routing::args const& to,
                           typename Routing::inputs const& inputs) {
    using tile = route_tile<Routing, TokenBlocks>;
    check_tile<tile>();
    launch(queue, "route_tokens", route_tokens<Routing, TokenBlocks>, to.results.chosen.token_blocks, tile::threads,
           tile::shared_bytes, to, inputs);
  }
};

/// What a router knows of each pair without logits.
template <>
struct route_step<router::from_inputs> {
  template <class Layer>
  struct memory {
    constexpr memory(carver&, std::int64_t) {}
  };
  static constexpr std::int64_t least_block_tokens = take_pairs_tile::tokens;
  template <class Layer>
  static constexpr std::int64_t block_tokens(std::int64_t) {
    return take_pairs_tile::tokens;
  }

  template <class Layer>
  static void enqueue(forward_args<Layer> const& args, launch_queue const& queue, memory<Layer> const&,
                      route_results const& results, pass_size const*) {
    constexpr shape dims = Layer::dims;
    constexpr std::size_t shared_bytes = take_pairs_tile::shared_bytes(Layer::all_experts, dims.top_k);
    static_assert(
        shared_bytes <= most_shared_bytes,
        "switchyard: backend::cuda keeps the pairs of 32 tokens in shared memory, a bit for every expert, which "
        "has no room for so many experts and choices. Use fewer of them.");
    if (args.tokens.rows == 0) return;
    using inputs = typename Layer::router::template inputs<Layer>;
    launch(queue, "take_pairs", take_pairs<typename Layer::router, inputs, take_pairs_tile>,
           results.chosen.token_blocks, take_pairs_tile::threads, shared_bytes, args.inputs, args.tokens.rows,
           Layer::all_experts, dims.top_k, args.active, results);
  }
  template <class Layer>
  static void enqueue_auxiliary(forward_args<Layer> const&, launch_queue const&, memory<Layer> const&,
                                plan_memory const&, pass_size const*, double*) {}
  template <class Layer>
  static view<typename Layer::element const> tokens_of_experts(forward_args<Layer> const& args, memory<Layer> const&) {
    return args.tokens;
  }
};

}  // namespace switchyard::cuda
