#pragma once

/// What backends do with the tokens that meet quantised weights.
namespace switchyard {

/// How a backend multiplies quantised weights. Another way than `exact` is never chosen silently.
enum class quantised_products {
  exact,  ///< as the floats that they widen to
  /// On the CPU (`cpu_context::quantised`): as integers, with tokens, and rows between the two products, in 8 bits: 32 neighbouring values of
  /// a row are multiples of their largest magnitude / 127. Products of a row have the same bits with all instruction sets and whatever rows stand
  /// beside it. Relative error of an expert's output (Frobenius distance to the exact one, normal tokens): 0.010 to 0.012, of `q4_K` 0.005 to
  /// 0.008 with 61 rows or more and up to 0.024 with a few. For `q8_0`, `q4_0`, `q4_K`, `mxfp4`, `mxfp4_halves` and `int8_channel`; others are
  /// refused.
  tokens_in_int8,
  /// On Hopper (`hopper_tuning::quantised`): as E4M3, with tokens, and rows between the two products, in E4M3 too: 128 neighbouring values of a
  /// row are multiples of their largest magnitude / 448. Sums of 128 products are scaled and added as floats. Relative error of a layer's output
  /// (as above, weights of uniformly drawn codes): 0.045. For `fp8_block` and `fp8_tensor`; others are refused.
  tokens_in_fp8
};

}  // namespace switchyard
