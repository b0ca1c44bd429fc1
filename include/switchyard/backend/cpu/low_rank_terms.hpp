#pragma once

#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/panels.hpp>
#include <switchyard/backend/cpu/product.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/view.hpp>
#include <switchyard/expert/low_rank_terms.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

/// Terms of low rank beside the products of rows:
///
///   rows --wide, rows of an entry together--> narrow rows --tall, while the sums of a product are on the stack--> sums + terms
namespace switchyard::cpu {

/// Products without terms: nothing happens.
struct no_terms {
  static constexpr bool any = false;
  int gate = 0, up = 0, down = 0;  ///< names, as terms have them

  template <class Tokens>
  void before_in(cpu_context const&, Tokens const&, int, bool) const {}
  void before_out(cpu_context const&, int) const {}
};

/// Floats that a narrow row takes: its rank up to what every instruction set multiplies at once.
constexpr std::int64_t narrow_floats(int rank) { return divide_up(rank, 32) * 32; }

/// The term of one projection.
template <class Element>
struct low_rank_term {
  low_rank_factors<Element> factors;
  float* narrow;          ///< scale * wide x of every row: [rows, narrow_floats(rank)]
  float* narrow_columns;  ///< the same the other way round, [rank, narrow_stride]: what panels take in
};

/// Floats from one number of the narrow rows to the next, where these stand side by side: a panel may reach behind the last row, and rows
/// that are a power of two apart would take the same places of the cache.
constexpr std::int64_t narrow_stride(std::int64_t rows) { return divide_up(rows, 32) * 32 + 32 + 16; }

/// What the products of one call need for their terms. Rows are those of the plan.
template <class Element>
struct low_rank_terms {
  static constexpr bool any = true;

  low_rank_term<Element> gate;      ///< only where experts are gated
  low_rank_term<Element> up, down;  ///< have their narrow rows one after the other, in the same memory
  term_kernels<Element> kernels;
  int rank;
  std::int64_t inner_stride;  ///< of `inner`
  std::int64_t rows, entries;
  std::int32_t *wide_of, *tall_of;  ///< [rows], entries
  float* scale_of;                  ///< [rows]
  std::int32_t* by_wide;            ///< [rows], numbers of rows, those of an entry together; written by `sort`
  std::int32_t* first_of;           ///< [entries + 2], scratch of `sort`
  float* inner;                     ///< [rows, inner_stride]: what goes into the second product

  /// Before the first product: the narrow rows of tokens, as `tokens` locates them.
  template <class Tokens>
  void before_in(cpu_context const& context, Tokens const& tokens, int hidden, bool gated) const;
  /// Before the second one: those of what stands in `inner`.
  void before_out(cpu_context const& context, int intermediate) const;
  float* inner_at(std::int64_t row, int feature) const { return inner + row * inner_stride + feature; }

  /// Puts the rows that have a wide factor in the order of their entries; returns how many there are.
  std::int64_t sort() const {
    std::fill(first_of, first_of + entries + 2, 0);
    std::int32_t* const next = first_of + 1;  // behind the counting, where the rows of an entry go on
    for (std::int64_t r = 0; r < rows; ++r) next[wide_of[r] + 1] += wide_of[r] >= 0 ? 1 : 0;
    for (std::int64_t e = 0; e < entries; ++e) next[e + 1] += next[e];
    for (std::int64_t r = 0; r < rows; ++r) {
      if (wide_of[r] >= 0) by_wide[next[wide_of[r]]++] = static_cast<std::int32_t>(r);
    }
    return next[entries];
  }
};

/// Rows that are multiplied together at most.
inline constexpr int narrow_group_rows = 12;

/// Makes narrow rows for one or two projections, in float. `group(kernels, ids, rows, first, length, to)` puts a piece of some rows side by
/// side.
template <class Element, class Group>
void make_narrow_rows(cpu_context const& context, low_rank_terms<Element> const& terms, int depth,
                      low_rank_term<Element> const* projections, int count, Group const& group) {
  constexpr int piece = 512, most_features = item_features;
  std::int64_t const pitch = narrow_floats(terms.rank), columns_apart = narrow_stride(terms.rows);
  row_kernels<weight_view<Element>> const kernels = row_kernels_of<weight_view<Element>>(context.instructions);
  std::int64_t const sorted = terms.sort();
  // Rows of an entry share its numbers, but all workers want something to do. No result depends on it.
  std::int64_t const rows_of_item = std::clamp<std::int64_t>(divide_up(sorted, 2 * context.threads), 1, 96);
  std::int64_t const row_items = divide_up(sorted, rows_of_item);
  int const features = row_items < 2 * context.threads && context.threads > 1 ? 16 : most_features;
  std::int64_t const blocks = divide_up(terms.rank, features);
  parallel_for(context, row_items * blocks, [&](std::int64_t item) {
    std::int64_t const begin = item / blocks * rows_of_item, end = std::min(sorted, begin + rows_of_item);
    int const first_feature = static_cast<int>(item % blocks) * features;
    int const these = std::min(features, terms.rank - first_feature);
    alignas(64) float grouped[narrow_group_rows * row_floats(piece)];
    float part[narrow_group_rows * most_features], sums[2][narrow_group_rows * most_features];
    for (std::int64_t i = begin; i < end;) {
      std::int32_t const* const ids = terms.by_wide + i;
      std::int32_t const entry = terms.wide_of[ids[0]];
      int rows = 1;
      while (rows < narrow_group_rows && i + rows < end && terms.wide_of[ids[rows]] == entry) ++rows;
      i += rows;
      for (int k = 0; k < depth; k += piece) {
        int const length = std::min(piece, depth - k);
        group(kernels, ids, rows, k, length, grouped);
        for (int p = 0; p < count; ++p) {
          low_rank_factors<Element> const& factors = projections[p].factors;
          std::int64_t const row_stride = factors.wide_row_stride(), column_stride = factors.wide_column_stride();
          Element const* const wide = factors.wide_of(entry) + first_feature * row_stride + k * column_stride;
          multiply_rows(kernels, {grouped, rows}, {wide, row_stride, column_stride, these}, length, {}, part,
                        most_features);
          for (int r = 0; r < rows; ++r) {
            for (int f = 0; f < these; ++f) {
              float const value = part[r * most_features + f];
              float& sum = sums[p][r * most_features + f];
              sum = k == 0 ? value : sum + value;
            }
          }
        }
      }
      for (int p = 0; p < count; ++p) {
        for (int r = 0; r < rows; ++r) {
          float* const values = sums[p] + r * most_features;
          float const scale = terms.scale_of[ids[r]];
          for (int f = 0; f < these; ++f) values[f] *= scale;
          // Zeros behind the last.
          int const padded = first_feature + these < terms.rank ? these : static_cast<int>(pitch) - first_feature;
          for (int f = these; f < padded; ++f) values[f] = 0.0f;
          kernels.put(values, padded, first_feature, 0, 1, pitch, projections[p].narrow + ids[r] * pitch);
          float* const column = projections[p].narrow_columns + first_feature * columns_apart + ids[r];
          for (int f = 0; f < these; ++f) column[f * columns_apart] = values[f];
        }
      }
    }
  });
}

template <class Element>
template <class Tokens>
void low_rank_terms<Element>::before_in(cpu_context const& context, Tokens const& tokens, int hidden,
                                        bool gated) const {
  low_rank_term<Element> const projections[2] = {up, gate};
  make_narrow_rows(context, *this, hidden, projections, gated ? 2 : 1,
                   [&](row_kernels<weight_view<Element>> const& of_rows, std::int32_t const* ids, int count, int first,
                       int length, float* to) {
                     Element const* from[narrow_group_rows];
                     for (int r = 0; r < count; ++r) {
                       tokens.locate(ids[r], 1, from + r);
                       from[r] += first;
                     }
                     of_rows.group(from, count, length, to);
                   });
}

template <class Element>
void low_rank_terms<Element>::before_out(cpu_context const& context, int intermediate) const {
  make_narrow_rows(context, *this, intermediate, &down, 1,
                   [&](row_kernels<weight_view<Element>> const& of_rows, std::int32_t const* ids, int count, int first,
                       int length, float* to) {
                     for (int r = 0; r < count; ++r) {
                       of_rows.put(inner + ids[r] * inner_stride + first, length, 0, r, count, length, to);
                     }
                   });
}

/// Calls `use(entry, rows)` for every entry of rows `first` to `first + count - 1`, at most 32: a bit for each row that has it. Rows without
/// a term are left out.
template <class Element, class Use>
void for_each_entry(low_rank_terms<Element> const& terms, std::int64_t first, int count, Use const& use) {
  std::int32_t const* const entries = terms.tall_of + first;
  std::uint32_t done = 0;
  for (int i = 0; i < count; ++i) {
    if ((done >> i & 1) != 0 || entries[i] < 0) continue;
    std::uint32_t rows = 0;
    for (int j = i; j < count; ++j) rows |= entries[j] == entries[i] ? std::uint32_t{1} << j : 0;
    done |= rows;
    use(entries[i], rows);
  }
}

/// values[row][f] += terms of features from `first_feature` on, for rows of one entry: `at(row)` is where the first feature of a row
/// stands, the next is `feature_step` behind it.
template <class Element, class At>
void add_terms(low_rank_terms<Element> const& terms, low_rank_term<Element> const& term, Element const* tall,
               std::uint32_t rows, std::int64_t first_row, int features, At const& at, std::int64_t feature_step) {
  std::int64_t const pitch = narrow_floats(terms.rank);
  while (rows != 0) {
    float const* from[4] = {};
    float* to[4] = {};
    int count = 0;
    for (; rows != 0 && count < terms.kernels.rows; ++count, rows &= rows - 1) {
      int const row = __builtin_ctz(rows);
      from[count] = term.narrow + (first_row + row) * pitch;
      to[count] = at(row);
    }
    terms.kernels.add(tall, terms.rank, features, from, count, to, feature_step);
  }
}

/// The same of rows that stand one behind the other, `item_features` apart.
template <class Terms, class Term>
void add_terms_to_rows(Terms const& terms, Term Terms::*term, std::int64_t first_row, int count, int first_feature,
                       int features, float* values) {
  if constexpr (Terms::any) {
    for_each_entry(terms, first_row, count, [&](std::int32_t entry, std::uint32_t rows) {
      add_terms(
          terms, terms.*term, (terms.*term).factors.tall_of(entry) + first_feature * std::int64_t{terms.rank}, rows,
          first_row, features, [&](int row) { return values + row * item_features; }, 1);
    });
  }
}

/// The same of rows that stand side by side in panels, in the sums of every `step`-th tile from `first_tile` on.
template <class Terms, class Term, class Operand>
void add_terms_to_panels(Terms const& terms, Term Terms::*term, panel_kernels<Operand> const& kernels,
                         feature_tile<Operand> const* tiles, int first_tile, int step, panel_rows const& panels,
                         std::int64_t first_row, int first_feature, float* sums) {
  if constexpr (Terms::any) {
    auto const& of = terms.*term;
    int const rank = terms.rank, lanes = terms.kernels.lanes;
    for (int p = 0; p < panels.count(); ++p) {
      std::int64_t const first = first_row + std::int64_t{p} * panels.width;
      int const width = panels.width_of(p);
      for_each_entry(terms, first, panels.rows_of(p), [&](std::int32_t entry, std::uint32_t rows) {
        // A vector of rows side by side costs `rank` steps however many of them have the entry; a row alone, a vector of its rank at
        // a time and what it takes to add that up.
        int vectors = 0;
        for (int v = 0; v < width; v += lanes) vectors += (rows >> v & ((std::uint64_t{1} << lanes) - 1)) != 0 ? 1 : 0;
        std::int64_t const alone = __builtin_popcount(rows) * (divide_up(rank, lanes) + 4);
        for (int t = first_tile, feature = first_feature; t < kernels.item_tiles && tiles[t].features > 0;
             t += step, feature += kernels.features) {
          float* const of_tile = sums_at(kernels, sums, t, p);
          auto const* const tall = of.factors.tall_of(entry) + feature * std::int64_t{rank};
          if (vectors * (rank + 2) <= alone) {
            terms.kernels.add_to_panel(tall, rank, tiles[t].features, of.narrow_columns + first,
                                       narrow_stride(terms.rows), rows, of_tile, width);
          } else {
            add_terms(
                terms, of, tall, rows, first, tiles[t].features, [&](int row) { return of_tile + row; }, width);
          }
        }
      });
    }
  }
}

}  // namespace switchyard::cpu
