#pragma once

#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/panels.hpp>
#include <switchyard/backend/cpu/tile.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/view.hpp>

#include <algorithm>
#include <cstdint>

/// Both products of experts with few hidden units, of which a token visits many: parts of a dense block, above all. To gather a token for
/// each of its experts, and to write a row of results for each, would take longer than the products: here a token is read where it stands,
/// and the experts add to its sum, one after the other.
///
/// tokens --widened once--> floats --first product, by expert--> inner values of each pair, weighted --second product, by tokens and output
/// features--> the sum of each token.
namespace switchyard::cpu {

/// Experts of at most so many units are computed this way, where a token visits at least so many.
inline constexpr int most_narrow_units = 64, least_narrow_choices = 2;

/// The kernels of such products, of one instruction set: see narrow.inl.
template <class Element>
struct narrow_kernels {
  int step;  ///< output features come in multiples of it
  void (*widen)(Element const* from, int columns, float* to);
  void (*add)(float const* const* rows, int row_count, int depth, Element const* weights, Element const* fetched,
              std::int64_t stride, int features, float* const* sums);
};
/// Those of the widest vectors that a number of output features is a multiple of, up to `set`, which must not be `automatic`.
template <class Element>
narrow_kernels<Element> narrow_kernels_of(instruction_set set, int features) {
#if defined(__x86_64__)
  if (set >= instruction_set::avx512 && features % avx512::narrow_step == 0) {
    return {avx512::narrow_step, &avx512::widen_in_order<Element>, &avx512::add_narrow_products<Element>};
  }
  if (set >= instruction_set::avx2 && features % avx2::narrow_step == 0) {
    return {avx2::narrow_step, &avx2::widen_in_order<Element>, &avx2::add_narrow_products<Element>};
  }
#else
  (void)set, (void)features;
#endif
  return {portable::narrow_step, &portable::widen_in_order<Element>, &portable::add_narrow_products<Element>};
}

/// What the products of narrow experts read.
template <class Element>
struct narrow_products {
  view<Element const> tokens;
  std::int32_t const* offsets;  ///< [experts + 1]
  std::int32_t const* pair_of;  ///< [rows], in the order of tokens within an expert
  int experts, top_k, hidden, intermediate;
  expert_activation activation;
  weight_view<Element> gate, up, down;  ///< no gate where experts are not gated
  float const* combine_weights;         ///< [tokens, top_k]
  bool weighs_input;                    ///< they multiply the token, not the result
  float scale;                          ///< of the results

  /// Weights of neighbouring output features stand beside each other, and nothing is left over where vectors end.
  bool fit(narrow_kernels<Element> const& in, narrow_kernels<Element> const& out) const {
    return intermediate % in.step == 0 && hidden % out.step == 0 && up.row_stride == 1 && down.row_stride == 1 &&
           (!activation.gated || gate.row_stride == 1);
  }
};

/// Memory of these products.
struct narrow_memory {
  std::int64_t* first_item;  ///< [experts + 1]
  float* inner;              ///< [rows, intermediate]
  float* widened;            ///< [tokens, row_floats(hidden)]
  view<float> sums;          ///< [tokens, hidden], the result, apart by row_floats(hidden)
};

/// inner[row] = combine weight * scale * activation of the first products of some rows of an expert.
template <class Element>
void project_narrow_in(narrow_products<Element> const& of, narrow_kernels<Element> const& kernels, int expert,
                       int next_expert, std::int64_t first_row, int row_count, float const* tokens, float* inner) {
  constexpr int most_rows = 64, slice_bytes = 16 * 1024, ahead_bytes = 8 * 1024;
  int const units = of.intermediate, columns = of.activation.gated ? 2 * units : units;
  alignas(64) float sums[most_rows * 2 * most_narrow_units];
  float const* rows[most_rows];
  float *gate_sums[most_rows], *up_sums[most_rows];
  for (int r = 0; r < row_count; ++r) {
    rows[r] = tokens + of.pair_of[first_row + r] / of.top_k * row_floats(of.hidden);
    gate_sums[r] = sums + r * columns;
    up_sums[r] = gate_sums[r] + columns - units;
  }
  std::fill(sums, sums + row_count * columns, 0.0f);
  auto const add = [&](weight_view<Element> const& matrix, int k, int depth, Element const* fetched, float* const* to) {
    kernels.add(rows, row_count, depth, matrix.at(expert, 0, k), fetched, matrix.column_stride, units, to);
  };
  weight_view<Element> const& first = of.activation.gated ? of.gate : of.up;
  int const row_bytes = units * static_cast<int>(sizeof(Element));
  if (row_count <= 8) {
    // Weights are read once and as fast as they come: each matrix from its beginning to its end, some KiB ahead, then the next one.
    int const ahead = std::min(ahead_bytes / row_bytes, of.hidden);
    auto const add_all = [&](weight_view<Element> const& matrix, Element const* next, float* const* to) {
      int const before = of.hidden - ahead;
      if (before > 0) add(matrix, 0, before, matrix.at(expert, 0, ahead), to);
      for (int r = 0; r < row_count; ++r) rows[r] += before;
      add(matrix, before, ahead, next, to);
      for (int r = 0; r < row_count; ++r) rows[r] -= before;
    };
    if (of.activation.gated) add_all(of.gate, of.up.at(expert, 0, 0), gate_sums);
    add_all(of.up, first.at(next_expert, 0, 0), up_sums);
  } else {
    // A slice of the weights stays in the first-level cache for all rows.
    int const slice = std::max(slice_bytes / (of.activation.gated ? 2 * row_bytes : row_bytes), 1);
    for (int k = 0; k < of.hidden; k += slice) {
      int const depth = std::min(slice, of.hidden - k);
      bool const last = k + depth >= of.hidden;
      auto const next = [&](weight_view<Element> const& matrix) {
        return last ? matrix.at(next_expert, 0, 0) : matrix.at(expert, 0, k + depth);
      };
      if (of.activation.gated) add(of.gate, k, depth, next(of.gate), gate_sums);
      add(of.up, k, depth, next(of.up), up_sums);
      for (int r = 0; r < row_count; ++r) rows[r] += depth;
    }
  }
  for (int r = 0; r < row_count; ++r) {
    std::int32_t const pair = of.pair_of[first_row + r];
    float const of_input = of.weighs_input ? of.combine_weights[pair] : 1.0f;
    float const of_result = of.weighs_input ? of.scale : of.scale * of.combine_weights[pair];
    for (int i = 0; of.weighs_input && i < columns; ++i) gate_sums[r][i] *= of_input;
    float* const to = inner + (first_row + r) * units;
    of.activation.apply(gate_sums[r], up_sums[r], nullptr, 0.0f, 0.0f, units, to);
    for (int i = 0; i < units; ++i) to[i] *= of_result;
  }
}

/// sums[token][f] = the second products of all rows of some tokens, for some output features.
template <class Element>
void project_narrow_out(narrow_products<Element> const& of, narrow_kernels<Element> const& kernels, std::int64_t begin,
                        std::int64_t end, int first, int features, float const* inner, view<float> const& sums) {
  constexpr int most_rows = 256;
  float const* rows[most_rows];
  float* to[most_rows];
  for (std::int64_t t = begin; t < end; ++t) {
    std::fill(sums.row(t) + first, sums.row(t) + first + features, 0.0f);
  }
  auto const first_of = [&](int e, std::int64_t token) {
    return std::lower_bound(of.pair_of + of.offsets[e], of.pair_of + of.offsets[e + 1], token * of.top_k) - of.pair_of;
  };
  for (int e = 0; e < of.experts; ++e) {
    if (of.offsets[e] == of.offsets[e + 1]) continue;
    std::int64_t const last = first_of(e, end);
    std::int64_t row = first_of(e, begin);
    if (row == last) continue;
    int next = e + 1;  // whose weights are fetched
    while (next < of.experts && of.offsets[next] == of.offsets[next + 1]) ++next;
    if (next == of.experts) next = e;
    // A token that visits an expert twice is added twice, one after the other.
    while (row < last) {
      int count = 0;
      for (std::int64_t before = -1; row < last && count < most_rows; ++row, ++count) {
        std::int64_t const token = of.pair_of[row] / of.top_k;
        if (token == before) break;
        before = token;
        rows[count] = inner + row * of.intermediate;
        to[count] = sums.row(token) + first;
      }
      kernels.add(rows, count, of.intermediate, of.down.at(e, first, 0), of.down.at(next, first, 0),
                  of.down.column_stride, features, to);
    }
  }
}

/// The weighted sum of each token over its experts, in the order of their ids, to `m.sums`.
template <class Element>
void run_narrow_products(narrow_products<Element> const& of, narrow_kernels<Element> const& in,
                         narrow_kernels<Element> const& out, cpu_context const& context, narrow_memory const& m) {
  std::int64_t const tokens = of.tokens.rows;
  constexpr std::int64_t together = 8;
  parallel_for(context, divide_up(tokens, together), [&](std::int64_t item) {
    for (std::int64_t t = item * together; t < std::min(tokens, (item + 1) * together); ++t) {
      out.widen(of.tokens.row(t), of.hidden, m.widened + t * row_floats(of.hidden));
    }
  });

  constexpr int rows_of_item = 64;
  m.first_item[0] = 0;
  for (int e = 0; e < of.experts; ++e) {
    m.first_item[e + 1] = m.first_item[e] + divide_up(of.offsets[e + 1] - of.offsets[e], rows_of_item);
  }
  std::int64_t const items = m.first_item[of.experts];
  auto const expert_of = [&](std::int64_t item) {
    return static_cast<int>(std::upper_bound(m.first_item, m.first_item + of.experts + 1, item) - m.first_item) - 1;
  };
  parallel_for(context, items, [&](std::int64_t item, std::int64_t next) {
    int const e = expert_of(item);
    std::int64_t const first = of.offsets[e] + (item - m.first_item[e]) * rows_of_item;
    int const rows = static_cast<int>(std::min<std::int64_t>(rows_of_item, of.offsets[e + 1] - first));
    project_narrow_in(of, in, e, next < items ? expert_of(next) : e, first, rows, m.widened, m.inner);
  });

  // Sums of a tile of tokens and features, and the weights of an expert for them, stay in caches. Few tokens are cut by their features, so
  // that all workers read.
  constexpr std::int64_t tile_tokens = 256, most_features = 256;
  std::int64_t const tiles = divide_up(tokens, tile_tokens);
  bool const few = tokens <= 16;  // weights are read in streams as long as may be
  std::int64_t const wanted =
      few ? divide_up(of.hidden, context.threads)
          : std::min(most_features, divide_up(of.hidden, divide_up(4 * context.threads, tiles)));
  std::int64_t const features =
      std::clamp<std::int64_t>(divide_up(wanted, 2 * out.step) * 2 * out.step, out.step, of.hidden);
  std::int64_t const blocks = divide_up(of.hidden, features);
  parallel_for(context, tiles * blocks, [&](std::int64_t item) {
    std::int64_t const begin = item / blocks * tile_tokens, first = item % blocks * features;
    project_narrow_out(of, out, begin, std::min(tokens, begin + tile_tokens), static_cast<int>(first),
                       static_cast<int>(std::min(features, of.hidden - first)), m.inner, m.sums);
  });
}

}  // namespace switchyard::cpu
