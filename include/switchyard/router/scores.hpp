#pragma once

#include <switchyard/core/lanes.hpp>
#include <switchyard/core/text.hpp>

#include <cmath>

/// The first step of a top-k router: logits to scores. An expert that is closed (logit minus infinity) stays
/// closed whatever its score; `router::top_k` sees to it.
namespace switchyard::router::scores {

/// Softmax over all experts, with the maximum subtracted first.
struct softmax {
  static constexpr auto label = text("softmax");
  template <int Experts, class Lanes>
  SWITCHYARD_HD static void apply(Lanes lanes, per_expert<Experts, Lanes>& values) {
    float largest = values.value[0];
    for (float v : values.value) largest = v > largest ? v : largest;
    largest = lanes.max(largest);
    float total = 0.0f;
    for (float& v : values.value) {
      v = std::exp(v - largest);
      total += v;
    }
    total = lanes.sum(total);
    for (float& v : values.value) v /= total;
  }
};

/// Independent sigmoids (DeepSeek-V3, Llama 4, sigma-MoE).
struct sigmoid {
  static constexpr auto label = text("sigmoid");
  template <int Experts, class Lanes>
  SWITCHYARD_HD static void apply(Lanes, per_expert<Experts, Lanes>& values) {
    for (float& v : values.value) v = 1.0f / (1.0f + std::exp(-v));
  }
};

/// The logits themselves; for weightings that do the rest over the chosen experts.
struct logits {
  static constexpr auto label = text("logits");
  template <int Experts, class Lanes>
  SWITCHYARD_HD static void apply(Lanes, per_expert<Experts, Lanes>&) {}
};

}  // namespace switchyard::router::scores
