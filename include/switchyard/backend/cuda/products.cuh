#pragma once

#include <switchyard/backend/cuda/alignment.cuh>
#include <switchyard/backend/cuda/grouped_gemm.cuh>
#include <switchyard/backend/cuda/launch.cuh>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/shape.hpp>
#include <switchyard/core/view.hpp>
#include <switchyard/expert/expert_policy.hpp>

#include <cstdint>

/// How `backend::cuda` launches the two products.
namespace switchyard::cuda {

template <class Layer>
using first_product =
    product_in<typename Layer::element, typename Layer::expert::activation, Layer::expert_traits.gated>;
template <class Layer>
using second_product = product_out<typename Layer::element>;

/// A matrix, and how it is read.
template <class T>
product_weights<T> weights_of(weight_view<T> const& v) {
  bool const chunks = v.column_stride == 1 && is_aligned(v.data, v.row_stride) && is_aligned(v.data, v.expert_stride);
  auto const size = [](std::int64_t stride) { return stride < 0 ? -stride : stride; };
  return {v, chunks                                       ? access::by_chunks
             : size(v.row_stride) < size(v.column_stride) ? access::along_rows
                                                          : access::along_columns};
}

/// Rows that an expert has on average, rounded up.
template <class Layer>
std::int64_t rows_per_expert(std::int64_t tokens) {
  return divide_up(tokens * Layer::dims.top_k, Layer::dims.experts);
}

/// One product with one tile.
template <class Problem, class Tile>
void enqueue_product(cuda_context const& where, char const* what, product_args<typename Problem::element> const& with) {
  using layout = product_layout<Problem, Tile>;
  constexpr int features = layout::features, rows = Tile::tile.rows;
  // Every expert's last tile may have one row; there are no more tiles than pairs.
  std::int64_t const pairs = with.tokens * with.top_k, most = pairs / rows + with.experts;
  std::int64_t const tiles = most < pairs ? most : pairs;
  std::int64_t const shared_tiles = divide_up(with.tokens, rows) * divide_up(with.shared.features, features);
  launch(where, what, product<Problem, Tile>, tiles * divide_up(with.routed.features, features) + shared_tiles,
         layout::threads, layout::shared_bytes, with);
}

/// Both products with one tile.
template <class First, class Second, class Tile>
void enqueue_products(cuda_context const& where, product_args<typename First::element> const& first,
                      product_args<typename First::element> const& second) {
  enqueue_product<First, Tile>(where, "product (in)", first);
  enqueue_product<Second, Tile>(where, "product (out)", second);
}

/// The products of `backend::cuda`.
struct portable_products {
  /// Rows per expert, on average, up to which a tile of few rows is taken, and the one in between. No device has been
  /// measured yet. The limits are half of the first tile's rows and three quarters of the second one's: the rows of experts
  /// are spread about the average, and weights are read twice where they are more than a tile has.
  static constexpr int few = few_rows::tile.rows / 2, some = 48;

  template <class First, class Second>
  static void enqueue(cuda_context const& where, std::int64_t rows, product_args<typename First::element> const& first,
                      product_args<typename First::element> const& second) {
    if (rows <= few) {
      enqueue_products<First, Second, few_rows>(where, first, second);
    } else if (rows <= some) {
      enqueue_products<First, Second, some_rows>(where, first, second);
    } else {
      enqueue_products<First, Second, many_rows>(where, first, second);
    }
  }

  template <class Layer>
  static void enqueue(cuda_context const& where, product_args<typename Layer::element> const& first,
                      product_args<typename Layer::element> const& second) {
    enqueue<first_product<Layer>, second_product<Layer>>(where, rows_per_expert<Layer>(first.tokens), first, second);
  }
};

}  // namespace switchyard::cuda
