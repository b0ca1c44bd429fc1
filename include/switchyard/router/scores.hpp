#pragma once

#include <switchyard/core/exponential.hpp>
#include <switchyard/core/lanes.hpp>
#include <switchyard/core/text.hpp>

#include <cmath>

/// The first step of a top-k router: logits to scores. An expert that is closed (logit minus infinity) stays
/// closed whatever its score; `router::top_k` sees to it.
///
/// `chosen_by_logits`: a larger logit has the larger score but for rounding, and the publications' order of choice is that of
/// the logits, or differs from it where scores round to the same number alone. Experts are then chosen by their logits, so
/// that neither rounding nor a process that flushes denormals makes two of them equal.
namespace switchyard::router::scores {

/// Softmax over all experts, with the maximum subtracted first.
struct softmax {
  static constexpr auto label = text("softmax");
  static constexpr bool chosen_by_logits = true;
  template <int Experts, class Lanes>
  SWITCHYARD_HD static void apply(Lanes lanes, per_expert<Experts, Lanes>& values) {
    using share = per_expert<Experts, Lanes>;
    constexpr int chains = share::size % 4 == 0 ? 4 : 1;  // so that no value waits for all before it
    float most[chains], sums[chains] = {};
    for (float& m : most) m = -infinity;
    for (int i = 0; i < share::size; i += chains) {
      for (int c = 0; c < chains; ++c) most[c] = values.value[i + c] > most[c] ? values.value[i + c] : most[c];
    }
    float largest = most[0];
    for (float m : most) largest = m > largest ? m : largest;
    largest = lanes.max(largest);
    for (float& v : values.value) v -= largest;
    exponentials(values.value);
    for (int i = 0; i < share::size; i += chains) {
      for (int c = 0; c < chains; ++c) sums[c] += values.value[i + c];
    }
    float total = 0.0f;
    for (float s : sums) total += s;
    total = lanes.sum(total);
    for (float& v : values.value) v /= total;
  }
};

/// Independent sigmoids (DeepSeek-V3, sigma-MoE). They are published as what experts are chosen by: logits beyond 17 all have
/// the score 1, and the lower id wins. Where the logits choose, as in Llama 4, take `scores::logits` and `weighting::sigmoid`.
struct sigmoid {
  static constexpr auto label = text("sigmoid");
  static constexpr bool chosen_by_logits = false;
  template <int Experts, class Lanes>
  SWITCHYARD_HD static void apply(Lanes, per_expert<Experts, Lanes>& values) {
    for (float& v : values.value) v = -v;
    exponentials(values.value);
    for (float& v : values.value) {
      v = 1.0f / (1.0f + v);
      // Not what a process may flush or keep, so that it chooses the same experts either way.
      v = v < 0x1p-126f ? 0.0f : v;
    }
  }
};

/// sqrt(log(1 + exp(logit))): not negative, and without an upper limit (DeepSeek-V4's `sqrtsoftplus`).
struct sqrt_softplus {
  static constexpr auto label = text("sqrt_softplus");
  static constexpr bool chosen_by_logits = false;
  template <int Experts, class Lanes>
  SWITCHYARD_HD static void apply(Lanes, per_expert<Experts, Lanes>& values) {
    for (float& v : values.value) v = of(v);
  }
  SWITCHYARD_HD static float of(float logit) {
    // Below -17 the logarithm is the exponential itself, whose square root does not vanish with it.
    if (logit < -17.0f) return std::exp(0.5f * logit);
    float const above = logit > 0.0f ? logit : 0.0f, distance = logit > 0.0f ? -logit : logit;
    return std::sqrt(above + std::log1p(std::exp(distance)));
  }
};

/// The logits themselves; for weightings that do the rest over the chosen experts.
struct logits {
  static constexpr auto label = text("logits");
  static constexpr bool chosen_by_logits = true;
  template <int Experts, class Lanes>
  SWITCHYARD_HD static void apply(Lanes, per_expert<Experts, Lanes>&) {}
};

}  // namespace switchyard::router::scores
