#pragma once

#include <cstdint>

#include "reference.hpp"
#include "support/any_layer.hpp"

/// Random problems for layers.
namespace support {

/// Where tokens are sent: all over, all to one expert (as first choice), or none to half of the experts.
enum class routing { free, one_expert, half_of_the_experts };

inline constexpr char const* name_of(routing r) {
  return r == routing::free ? "free" : r == routing::one_expert ? "one expert" : "half of the experts";
}

/// Weights and tokens, in double but exact in the layer's element type, so that reference and layer see the same.
struct problem {
  any_layer const* layer = nullptr;
  reference::config config;
  reference::weights weights;
  reference::numbers tokens;
  reference::inputs inputs;
  sy::expert_dropout dropout = {};  ///< what `inputs.masked` is made of
};

/// A random problem whose decisions do not hang on rounding: tokens near a tie are drawn again.
problem random_problem(any_layer const& layer, std::int64_t tokens, routing where, unsigned seed);

}  // namespace support
