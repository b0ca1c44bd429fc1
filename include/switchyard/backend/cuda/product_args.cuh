#pragma once

#include <switchyard/backend/cuda/half_rows.cuh>
#include <switchyard/backend/cuda/low_rank_terms.cuh>
#include <switchyard/backend/cuda/pass_size.cuh>
#include <switchyard/core/half.hpp>
#include <switchyard/core/operand.hpp>
#include <switchyard/core/view.hpp>

#include <cstdint>
#include <type_traits>

/// What the kernels of a product are compiled for, read and write, here and on Hopper.
namespace switchyard::cuda {

template <class Operand>
struct product_args;

/// What the kernels of a product are compiled for. Widths, experts and rows are arguments, so that layers which differ in
/// their shape share their kernels. `Args` are `product_args`, or `product_args_with_terms`.
template <class Operand, class Activation, bool Gated, class Args = product_args<Operand>>
struct product_in {
  using operand = Operand;
  using args = Args;
  using element = typename Operand::element;
  using activation = Activation;
  using result = element;
  static constexpr bool gathers = true, gated = Gated;
  static constexpr bool has_exponents =
      std::is_same_v<element, half>;  // of the rows between the products: half_rows.cuh
};
template <class Operand, class Args = product_args<Operand>>
struct product_out {
  using operand = Operand;
  using args = Args;
  using element = typename Operand::element;
  using result = summed_row<element>;
  static constexpr bool gathers = false, gated = false;
  static constexpr bool has_exponents = std::is_same_v<element, half>;
};

/// How a matrix in global memory is read.
enum class access {
  by_chunks,      ///< by 16 bytes of a row
  along_columns,  ///< element by element, neighbouring threads in neighbouring columns
  along_rows      ///< the same in neighbouring rows: a transposed matrix
};

/// A right factor. This one is restored while it is read.
template <class Operand>
struct product_weights {
  Operand operand;
};
/// This one stands in memory.
template <class Element>
struct product_weights<weight_view<Element>> {
  weight_view<Element> view;
  access reading;
};

/// Rows in E4M3: `group` neighbouring values are multiples of a scale of theirs. Scales stand in the order of the plan's rows, which may be
/// several of a token.
struct rounded_rows {
  static constexpr int group = 128;
  std::uint8_t* codes = nullptr;         ///< [rows, depth], a multiple of `group`
  float* scales = nullptr;               ///< [depth / group, pairs]
  std::int64_t pairs = 0;                ///< of the call
  std::int32_t const* row_of = nullptr;  ///< [pairs]: the plan's row of a token and choice; -1: none
  pass_size const* pass = nullptr;       ///< null: all tokens of the call
};

/// One set of experts: the routed ones, or the shared one, which has no features where there is none. This is what does not depend on
/// how their weights are read.
template <class Element>
struct side_rows {
  int depth, features;
  Element const* rows;  ///< left factor, [rows, depth]
  std::int64_t row_stride;
  access reading;
  bias_view<Element> gate_bias, bias;  ///< null data: none
  void* result;                        ///< [rows, features] of the problem's results
  std::int64_t result_stride;          ///< a multiple of 16 bytes
  row_exponents exponents;             ///< of the rows between the products
  rounded_rows rounded;                ///< room for `rows` in E4M3, where products multiply those
};
template <class Operand>
struct product_side : side_rows<typename Operand::element> {
  product_weights<Operand> gate, weight;  ///< [matrices, features, depth]; `gate` only where the expert is gated
};

/// The rows of the experts of a launch, as the plan has placed them, all on the device: all experts of the layer, or some of them.
struct expert_rows {
  int count;                                            ///< experts of the launch
  std::int32_t const *begin = nullptr, *end = nullptr;  ///< [count]: the rows of each
  std::int32_t const* matrix_of = nullptr;  ///< [count], below `matrices`; null: expert e has the matrices e
  int matrices;                             ///< that the weights and biases of the routed experts are views of
  std::int64_t most;                        ///< rows that all of them have together, at most

  /// All experts of a plan.
  static expert_rows of_plan(std::int32_t const* offsets, int experts, std::int64_t most) {
    return {experts, offsets, offsets + 1, nullptr, experts, most};
  }
  __device__ int matrix(int expert) const { return matrix_of == nullptr ? expert : matrix_of[expert]; }
};

/// A shared expert's weights stand in memory, whatever the routed ones' do.
template <class Operand>
struct product_args {
  product_side<Operand> routed;
  product_side<weight_view<typename Operand::element>> shared;
  expert_rows experts;
  int top_k;
  std::int32_t const* pair_of;  ///< [rows]
  float const* weights;         ///< [tokens, top_k], factors of the routed experts' sums; null: none
  std::int64_t tokens;          ///< rows of the shared expert
  std::int64_t all_tokens = 0;  ///< of all devices that share a call out, and choose kernels as one; 0: `tokens`

  std::int64_t tokens_of_call() const { return all_tokens > 0 ? all_tokens : tokens; }
  __host__ __device__ side_rows<typename Operand::element> const& side(bool of_shared) const {
    return of_shared ? static_cast<side_rows<typename Operand::element> const&>(shared) : routed;
  }
};

/// The same where rows have terms of low rank beside their products.
template <class Operand>
struct product_args_with_terms : product_args<Operand> {
  low_rank_term<typename Operand::element> gate_term, term;
  std::int32_t const* tall_of;  ///< [rows], entries of the tall factors; -1: no term
};
template <class Problem>
inline constexpr bool has_terms =
    std::is_same_v<typename Problem::args, product_args_with_terms<typename Problem::operand>>;

}  // namespace switchyard::cuda
