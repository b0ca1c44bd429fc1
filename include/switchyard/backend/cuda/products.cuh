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
namespace switchyard::backend::device {

template <class Layer>
using first_product = product_in<typename Layer::expert, typename Layer::element, Layer::dims.hidden,
                                 Layer::dims.intermediate, Layer::router_traits.weighs_input>;
template <class Layer>
using second_product =
    product_out<typename Layer::expert, typename Layer::element, Layer::dims.hidden, Layer::dims.intermediate>;

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
template <class Layer, class Problem, class Tile>
void enqueue_product(cuda_context const& where, char const* what, product_args<typename Layer::element> const& with) {
  constexpr shape dims = Layer::dims;
  using layout = product_layout<Problem, Tile>;
  constexpr int features = layout::features, rows = Tile::tile.rows;
  // Every expert's last tile may have one row; there are no more tiles than pairs.
  std::int64_t const pairs = with.tokens * dims.top_k, most = pairs / rows + dims.experts;
  std::int64_t const tiles = most < pairs ? most : pairs;
  std::int64_t const shared_tiles = Layer::expert_traits.shared_intermediate > 0
                                        ? divide_up(with.tokens, rows) * divide_up(Problem::shared_features, features)
                                        : 0;
  launch(where, what, product<Problem, Tile>, tiles * divide_up(Problem::features, features) + shared_tiles,
         layout::threads, layout::shared_bytes, with);
}

/// Both products with one tile.
template <class Layer, class Tile>
void enqueue_products(cuda_context const& where, product_args<typename Layer::element> const& first,
                      product_args<typename Layer::element> const& second) {
  enqueue_product<Layer, first_product<Layer>, Tile>(where, "product (in)", first);
  enqueue_product<Layer, second_product<Layer>, Tile>(where, "product (out)", second);
}

/// The products of `backend::cuda`.
struct portable_products {
  /// Where rows per expert are few, a tile of many rows would multiply zeros. No device has been measured yet: the limits
  /// are half a tile's rows.
  template <class Layer>
  static void enqueue(cuda_context const& where, product_args<typename Layer::element> const& first,
                      product_args<typename Layer::element> const& second) {
    std::int64_t const rows = rows_per_expert<Layer>(first.tokens);
    if (rows <= few_rows::tile.rows / 2) {
      enqueue_products<Layer, few_rows>(where, first, second);
    } else if (rows <= 48) {
      enqueue_products<Layer, some_rows>(where, first, second);
    } else {
      enqueue_products<Layer, many_rows>(where, first, second);
    }
  }
};

}  // namespace switchyard::backend::device
