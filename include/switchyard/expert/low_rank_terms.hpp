#pragma once

#include <switchyard/core/checks.hpp>
#include <switchyard/core/host_device.hpp>

#include <cstdint>

/// Terms of low rank: what a row of a product gets beside W x where its language or its adapter has factors of its own.
namespace switchyard {

template <class Layer>
struct forward_args;

/// The tables of one projection. A row with an entry of both gets tall[entry] (wide[entry] x) beside W x.
template <class Element>
struct low_rank_factors {
  Element const* tall = nullptr;  ///< [entries, rows, rank]
  Element const* wide = nullptr;  ///< [entries, rank, columns]
  int rows = 0, columns = 0, rank = 0;
  bool wide_by_columns = false;  ///< `wide` is [entries, columns, rank]

  SWITCHYARD_HD constexpr Element const* tall_of(std::int64_t entry) const { return tall + entry * rows * rank; }
  SWITCHYARD_HD constexpr Element const* wide_of(std::int64_t entry) const { return wide + entry * rank * columns; }
  SWITCHYARD_HD constexpr std::int64_t wide_row_stride() const { return wide_by_columns ? 1 : columns; }
  SWITCHYARD_HD constexpr std::int64_t wide_column_stride() const { return wide_by_columns ? rank : 1; }
};

/// The factors of a row: entries of both tables, or -1 for both where the row gets W x alone.
struct low_rank_entry {
  int wide, tall;
  float scale;  ///< of the term; NaN makes NaN of the row
};

namespace expert {

/// What an expert computes whose projections are W x + scale * tall (wide x), named by it as `computation`. Such an expert says beside
/// what experts of `two_products` do:
///
///   static constexpr bool one_matrix;   // all experts have the same W: see `runs_as_one`
///   static constexpr int rank;
///   template <class Layer>
///   static constexpr std::int64_t entries;               // of each table
///   template <class Layer>
///   static auto entries_of(forward_args<Layer> const&);  // low_rank_entry of(expert, token) const, for kernels
///   template <class Layer>
///   static void check_entries(forward_args<Layer> const&);  // where tokens may name ones that there are not; on the host
///
/// Its operands have the members `base`, which is W, and `change.factors()`.
struct low_rank_products {};

}  // namespace expert

/// Whether products run over the rows of all experts at once: these share their matrices, and biases where there are some. Experts that
/// share matrices and have biases of their own have W with an `expert_stride` of 0.
template <class Layer>
inline constexpr bool runs_as_one = Layer::expert::one_matrix &&
                                    (!Layer::expert_traits.bias || Layer::expert_traits.one_bias);

}  // namespace switchyard
