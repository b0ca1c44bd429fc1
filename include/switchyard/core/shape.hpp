#pragma once

namespace switchyard {

/// The sizes of one Mixture-of-Experts layer. A template argument of `layer`.
struct shape {
  int hidden = 0;        ///< width of a token
  int intermediate = 0;  ///< inner width of one routed expert
  int experts = 0;       ///< routed experts in the layer
  int top_k = 0;         ///< routed experts per token

  friend constexpr bool operator==(shape const&, shape const&) = default;
};

}  // namespace switchyard
