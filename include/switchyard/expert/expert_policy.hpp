#pragma once

#include <switchyard/core/shape.hpp>
#include <switchyard/expert/activation.hpp>

#include <concepts>
#include <string_view>

namespace switchyard {

/// What multiplies the output of a shared expert.
enum class shared_gate {
  none,    ///< nothing
  sigmoid  ///< sigmoid(token . gate vector), one value per token (Qwen2-MoE)
};

struct expert_traits {
  bool gated = false;       ///< true: gate, up and down projection; false: up and down
  bool bias = false;        ///< every projection of the routed experts has a bias
  int scale_numerator = 1;  ///< routed experts' results are multiplied by a constant fraction
  int scale_denominator = 1;
  int shared_intermediate = 0;  ///< inner width of the shared expert; 0: there is none
  shared_gate gate = shared_gate::none;

  constexpr int input_projections() const { return gated ? 2 : 1; }
};

/// What an expert computes between its matrix products.
template <class Expert>
concept expert_policy = requires {
  { Expert::name } -> std::convertible_to<std::string_view>;
  { Expert::traits } -> std::convertible_to<expert_traits>;
}
&&((Expert::traits.gated && gated_activation<typename Expert::activation>) ||
   (!Expert::traits.gated && activation<typename Expert::activation>));

}  // namespace switchyard
