#pragma once

#include <switchyard/backend/cuda/half_rows.cuh>
#include <switchyard/backend/cuda/instructions.cuh>
#include <switchyard/backend/cuda/launch.cuh>
#include <switchyard/backend/cuda/low_rank_terms.cuh>
#include <switchyard/backend/cuda/products.cuh>
#include <switchyard/backend/cuda/steps.cuh>
#include <switchyard/backend/cuda/temporaries.cuh>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/operand.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/expert/low_rank_terms.hpp>
#include <switchyard/layer.hpp>

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

/// Step 3 of `backend::cuda` where rows have terms of low rank beside their products.
namespace switchyard::cuda {

/// What makes the narrow rows of one product. `Entries` says which factors a row has.
template <class Element, class Entries>
struct narrow_args {
  Entries entries;
  std::int32_t const* row_count;  ///< on the device
  std::int32_t const* pair_of;    ///< [rows]
  std::int32_t const* experts;    ///< [pairs]
  int top_k;
  Element const* rows;  ///< [rows, depth], or tokens
  std::int64_t row_stride;
  bool of_tokens;
  int depth;
  row_exponents exponents;  ///< of rows of half elements
  int projections;          ///< 1 or 2
  low_rank_factors<Element> factors[2];
  float* narrow[2];        ///< [rows, narrow_floats(rank)]
  std::int32_t* tall_of;   ///< [rows], written; null: it is there
  std::int32_t* all_rows;  ///< [2], written: 0 and the number of rows
};

/// Rows, numbers of the rank and threads of a block.
inline constexpr int narrow_rows = 16, narrow_columns = 32, narrow_threads = 256;

/// Eight bytes of a row, from element k on, zeros behind its end.
template <class Element>
__device__ uint2 load_eight_bytes(Element const* row, int k, int depth) {
  constexpr int size = 8 / static_cast<int>(sizeof(Element));
  if (row == nullptr || k >= depth) return make_uint2(0, 0);
  if (k + size <= depth && reinterpret_cast<std::uintptr_t>(row + k) % 8 == 0) {
    return *reinterpret_cast<uint2 const*>(row + k);
  }
  alignas(8) Element values[size];
#pragma unroll
  for (int i = 0; i < size; ++i) values[i] = k + i < depth ? row[k + i] : Element(0.0f);
  return *reinterpret_cast<uint2 const*>(values);
}

/// The same of a column of a matrix with rows of `stride` elements.
template <class Element>
__device__ uint2 load_eight_bytes_across(Element const* column, int stride, int k, int depth) {
  constexpr int size = 8 / static_cast<int>(sizeof(Element));
  alignas(8) Element values[size];
#pragma unroll
  for (int i = 0; i < size; ++i) {
    values[i] = column != nullptr && k + i < depth ? column[std::int64_t{k + i} * stride] : Element(0.0f);
  }
  return *reinterpret_cast<uint2 const*>(values);
}

/// A block has 16 rows and up to 32 numbers of the rank; its warps take turns along the depth. For every entry that one of the rows has:
///
/// rows, wide factor --tensor cores--> sums of a warp --> shared memory --all warps, in order--> narrow rows of that entry
template <class Element, class Entries>
__global__ void __launch_bounds__(narrow_threads) make_narrow_rows(narrow_args<Element, Entries> const args) {
  constexpr int warps = narrow_threads / 32, blocks = narrow_columns / 8, size = 32 / static_cast<int>(sizeof(Element));
  __shared__ float parts[warps][narrow_rows][narrow_columns];
  __shared__ low_rank_entry entries[narrow_rows];
  __shared__ Element const* begins[narrow_rows];
  __shared__ int exponents[narrow_rows];
  int const thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  int const quarter = lane % 4, eighth = lane / 4;
  std::int32_t const count = *args.row_count;
  if (args.all_rows != nullptr && blockIdx.x == 0 && thread == 0) {
    args.all_rows[0] = 0;
    args.all_rows[1] = count;
  }
  int const rank = args.factors[0].rank;
  int const column_tiles = static_cast<int>(divide_up(rank, narrow_columns)), tiles = column_tiles * args.projections;
  std::int64_t const first_row = std::int64_t{blockIdx.x / static_cast<unsigned>(tiles)} * narrow_rows;
  int const tile = static_cast<int>(blockIdx.x) % tiles;
  int const first_column = tile % column_tiles * narrow_columns;
  if (first_row >= count) return;
  low_rank_factors<Element> const factors = tile < column_tiles ? args.factors[0] : args.factors[1];
  float* const narrow = tile < column_tiles ? args.narrow[0] : args.narrow[1];
  bool const has_exponents = !args.of_tokens && args.exponents.any != nullptr && *args.exponents.any != 0;

  if (thread < narrow_rows) {
    std::int64_t const row = first_row + thread;
    low_rank_entry entry{-1, -1, 0.0f};
    begins[thread] = nullptr;
    exponents[thread] = 0;
    if (row < count) {
      std::int32_t const pair = args.pair_of[row];
      std::int64_t const token = pair / args.top_k;
      entry = args.entries.of(args.experts[pair], token);
      begins[thread] = args.rows + (args.of_tokens ? token : row) * args.row_stride;
      if (has_exponents) exponents[thread] = largest_exponent(args.exponents, row);
      if (args.tall_of != nullptr && tile == 0) args.tall_of[row] = entry.tall;
    }
    entries[thread] = entry;
  }
  __syncthreads();

  // Four elements of a row, divided by what brings all of it to its largest exponent.
  auto const left = [&](int r, int k) {
    uint2 words = load_eight_bytes(begins[r], k, args.depth);
    if constexpr (std::is_same_v<Element, half>) {
      if (has_exponents && begins[r] != nullptr && k < args.depth) {
        int const less = exponents[r] - args.exponents.of(first_row + r, k);
        float const factor = less > 60 ? 0.0f : power_of_two(-less);
        float2 const low = unpack(half{}, words.x), high = unpack(half{}, words.y);
        words =
            make_uint2(pack(half{}, factor * low.x, factor * low.y), pack(half{}, factor * high.x, factor * high.y));
      }
    }
    return words;
  };

  std::int32_t const mine = entries[lane % narrow_rows].wide;
  std::int32_t entry = -1;
#pragma unroll 1
  while ((entry = least_of_warp(mine > entry ? mine : no_entry)) != no_entry) {
    Element const* const wide = factors.wide_of(entry);
    float sums[blocks][4] = {};
#pragma unroll 1
    for (int k = warp * size + quarter * size / 4; k - quarter * size / 4 < args.depth; k += warps * size) {
      uint2 const upper = left(eighth, k), lower = left(eighth + 8, k);
      std::uint32_t const a[4] = {upper.x, lower.x, upper.y, lower.y};
#pragma unroll
      for (int j = 0; j < blocks; ++j) {
        int const column = first_column + 8 * j + eighth;
        uint2 const b =
            factors.wide_by_columns
                ? load_eight_bytes_across(column < rank ? wide + column : nullptr, rank, k, args.depth)
                : load_eight_bytes(column < rank ? wide + std::int64_t{column} * args.depth : nullptr, k, args.depth);
        if constexpr (sizeof(Element) == 2) {
          multiply(Element{}, sums[j], a, b.x, b.y);
        } else {
          std::uint32_t high[4], low[4];
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            tf32_parts const both(a[n]);
            high[n] = both.high;
            low[n] = both.low;
          }
          tf32_parts const b0(b.x), b1(b.y);
          multiply_tf32(sums[j], low, b0.high, b1.high);
          multiply_tf32(sums[j], high, b0.low, b1.low);
          multiply_tf32(sums[j], high, b0.high, b1.high);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < blocks; ++j) {
#pragma unroll
      for (int n = 0; n < 4; ++n) parts[warp][eighth + n / 2 * 8][8 * j + 2 * quarter + n % 2] = sums[j][n];
    }
    __syncthreads();
    for (int i = thread; i < narrow_rows * narrow_columns; i += narrow_threads) {
      int const r = i / narrow_columns, column = i % narrow_columns;
      if (entries[r].wide != entry || first_column + column >= narrow_floats(rank)) continue;
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < warps; ++w) sum += parts[w][r][column];
      float const scale = entries[r].scale * power_of_two(exponents[r]);
      narrow[(first_row + r) * narrow_floats(rank) + first_column + column] = scale * sum;
    }
    __syncthreads();
  }
}

template <class Products>
struct experts_step<expert::low_rank_products, Products> {
  using products = experts_step<expert::two_products, Products>;
  template <class Layer>
  static constexpr int matrices = runs_as_one<Layer> ? 1 : Layer::dims.experts;
  template <class Layer>
  using operand = decltype(as_operand(std::declval<typename Layer::weights const&>().up_proj.base));

  template <class Layer>
  struct memory : products::template memory<Layer> {
    float *narrow, *narrow_gate = nullptr;  // [pairs, narrow_floats(rank)]
    std::int32_t *tall_of, *all_rows;       // [pairs], [2]

    constexpr memory(carver& from, std::int64_t tokens) : products::template memory<Layer>(from, tokens) {
      std::int64_t const pairs = tokens * Layer::dims.top_k, floats = pairs * narrow_floats(Layer::expert::rank);
      narrow = from.take<float>(floats);
      if (Layer::expert_traits.gated) narrow_gate = from.take<float>(floats);
      tall_of = from.take<std::int32_t>(pairs);
      all_rows = from.take<std::int32_t>(2);
    }
  };

  /// `tokens` are what the experts see.
  template <class Layer>
  static expert_results<typename Layer::element> enqueue(forward_args<Layer> const& args, launch_queue const& queue,
                                                         view<typename Layer::element const> const& tokens,
                                                         plan_memory const& plan, memory<Layer> const& m,
                                                         pass_size const*) {
    using element = typename Layer::element;
    using entries = decltype(Layer::expert::template entries_of<Layer>(args));
    using product = product_args_with_terms<operand<Layer>>;
    constexpr bool gated = Layer::expert_traits.gated;
    typename Layer::weights const& w = args.weights;
    auto const both = products_of<Layer>(args, tokens, plan, m);
    narrow_args<element, entries> in{};
    in.entries = Layer::expert::template entries_of<Layer>(args);
    in.row_count = plan.plan.offsets + Layer::dims.experts;
    in.pair_of = plan.plan.pair_of;
    in.experts = plan.experts;
    in.top_k = Layer::dims.top_k;
    narrow_args<element, entries> out = in;
    in.rows = tokens.data;
    in.row_stride = tokens.row_stride;
    in.of_tokens = true;
    in.depth = Layer::dims.hidden;
    in.projections = gated ? 2 : 1;
    in.factors[0] = w.up_proj.change.factors();
    in.narrow[0] = m.narrow;
    if constexpr (gated) in.factors[1] = w.gate_proj.change.factors();
    in.narrow[1] = m.narrow_gate;
    in.tall_of = m.tall_of;
    in.all_rows = m.all_rows;
    out.rows = m.activated;
    out.row_stride = m.activated_stride;
    out.depth = Layer::dims.intermediate;
    out.exponents = m.exponents;
    out.projections = 1;
    out.factors[0] = w.down_proj.change.factors();
    out.narrow[0] = m.narrow;
    auto const enqueue_narrow = [&](narrow_args<element, entries> const& of) {
      std::int64_t const tiles = of.projections * divide_up(Layer::expert::rank, narrow_columns);
      launch(queue, "make_narrow_rows", make_narrow_rows<element, entries>,
             divide_up(tokens.rows * Layer::dims.top_k, narrow_rows) * tiles, narrow_threads, 0, of);
    };

    product first{both.in, {}, {in.factors[0], m.narrow}, m.tall_of};
    if constexpr (gated) first.gate_term = {in.factors[1], m.narrow_gate};
    product const second{both.out, {}, {out.factors[0], m.narrow}, m.tall_of};
    enqueue_narrow(in);
    portable_products::enqueue<product_in<operand<Layer>, typename Layer::expert::activation, gated, product>,
                               product_out<operand<Layer>, product>>(
        queue, divide_up(tokens.rows * Layer::dims.top_k, matrices<Layer>), first, second,
        [&] { enqueue_narrow(out); });
    return products::template results_of<Layer>(args, m);
  }

  /// The arguments of both products of a call, without their terms.
  template <class Layer>
  static auto products_of(forward_args<Layer> const& args, view<typename Layer::element const> const& tokens,
                          plan_memory const& plan, memory<Layer> const& m) {
    auto both =
        products::products_of(args, args.weights, tokens, plan, m, [](auto const& of) { return as_operand(of.base); });
    if constexpr (runs_as_one<Layer>) {
      both.in.experts = both.out.experts = expert_rows::of_plan(m.all_rows, 1, both.in.experts.most);
    }
    return both;
  }
};

}  // namespace switchyard::cuda
