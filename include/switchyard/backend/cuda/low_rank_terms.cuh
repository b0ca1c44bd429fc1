#pragma once

#include <switchyard/backend/cuda/instructions.cuh>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/expert/low_rank_terms.hpp>

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

/// Terms of low rank beside the products of rows:
///
///   rows --wide--> narrow rows, float --tall, on tensor cores--> sums of a product in registers + terms
namespace switchyard::cuda {

/// Floats that a narrow row takes, with zeros behind its rank.
SWITCHYARD_HD constexpr std::int64_t narrow_floats(int rank) { return (std::int64_t{rank} + 7) / 8 * 8; }

/// The term of one projection.
template <class Element>
struct low_rank_term {
  low_rank_factors<Element> factors;
  float const* narrow;  ///< scale * wide x of every row: [rows, narrow_floats(rank)]
};

/// The rows of a warp's sums.
struct rows_with_terms {
  std::int32_t const* tall_of;  ///< entries of all rows
  std::int64_t first;           ///< row of the first sum
  int count;                    ///< of rows that exist from there on
};

inline constexpr std::int32_t no_entry = 0x7fffffff;

/// The least value of a warp.
__device__ inline std::int32_t least_of_warp(std::int32_t value) {
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) value = min(value, __shfl_xor_sync(~0u, value, apart));
  return value;
}

/// sums += terms, for the column blocks from `First` on, which have the features from `first_feature` on. Lane l has the columns 2 (l % 4)
/// and the next of rows l / 4 and l / 4 + 8 of each block of 16 rows and 8 columns.
///
/// Narrow rows are multiplied as the sums of two tf32 numbers each, and so are factors of four bytes; those of two are one already. Rows
/// meet the factors of every entry that one of 16 rows has, and keep what is theirs: others stay as they are, to the bit.
template <int First, int Count, class Element, int RowBlocks, int ColumnBlocks>
__device__ void add_low_rank_terms(float (&sums)[RowBlocks][ColumnBlocks][4], low_rank_term<Element> const& term,
                                   rows_with_terms const& rows, int first_feature) {
  int const lane = static_cast<int>(threadIdx.x) % 32, quarter = lane % 4, eighth = lane / 4;
  int const rank = term.factors.rank, features = term.factors.rows;
  std::int64_t const pitch = narrow_floats(rank);
#pragma unroll
  for (int i = 0; i < RowBlocks; ++i) {
    int const row = 16 * i + lane % 16;
    std::int32_t const mine = row < rows.count ? rows.tall_of[rows.first + row] : -1;
    std::int32_t const of_rows[2] = {__shfl_sync(~0u, mine, eighth), __shfl_sync(~0u, mine, eighth + 8)};
    std::int32_t entry = -1;
#pragma unroll 1
    while ((entry = least_of_warp(mine > entry ? mine : no_entry)) != no_entry) {
      Element const* const tall = term.factors.tall_of(entry);
      float terms[Count][4] = {};
#pragma unroll 1
      for (int k = 0; k < rank; k += 8) {
        std::uint32_t high[4], low[4];
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          std::int64_t const at = rows.first + 16 * i + eighth + 8 * (n % 2);
          float const value = of_rows[n % 2] == entry ? term.narrow[at * pitch + k + quarter + n / 2 * 4] : 0.0f;
          tf32_parts const parts(__float_as_uint(value));
          high[n] = parts.high;
          low[n] = parts.low;
        }
#pragma unroll
        for (int j = 0; j < Count; ++j) {
          int const feature = first_feature + 8 * j + eighth;
          float weights[2];
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            int const number = k + quarter + 4 * n;
            bool const exists = feature < features && number < rank;
            weights[n] = exists ? static_cast<float>(tall[std::int64_t{feature} * rank + number]) : 0.0f;
          }
          if constexpr (sizeof(Element) == 2) {
            std::uint32_t const b0 = __float_as_uint(weights[0]), b1 = __float_as_uint(weights[1]);
            multiply_tf32(terms[j], low, b0, b1);
            multiply_tf32(terms[j], high, b0, b1);
          } else {
            tf32_parts const b0(__float_as_uint(weights[0])), b1(__float_as_uint(weights[1]));
            multiply_tf32(terms[j], low, b0.high, b1.high);
            multiply_tf32(terms[j], high, b0.low, b1.low);
            multiply_tf32(terms[j], high, b0.high, b1.high);
          }
        }
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (of_rows[h] != entry) continue;
#pragma unroll
        for (int j = 0; j < Count; ++j) {
          sums[i][First + j][2 * h] += terms[j][2 * h];
          sums[i][First + j][2 * h + 1] += terms[j][2 * h + 1];
        }
      }
    }
  }
}

}  // namespace switchyard::cuda
