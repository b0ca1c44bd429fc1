#pragma once

#include <switchyard/core/host_device.hpp>
#include <switchyard/core/text.hpp>

#include <cmath>

/// The last step of a top-k router: the chosen experts' scores to combine weights. Every lane does the same.
namespace switchyard::router::weighting {

/// The scores as they are (Switch, OLMoE, Qwen2-MoE, DeepSeek-V2).
struct as_scored {
  static constexpr auto label = text("as_scored");
  template <int TopK>
  SWITCHYARD_HD static void apply(float (&)[TopK]) {}
};

/// 1 for each, whatever its score: the chosen experts are parts of one block, whose outputs are added (MoEfication).
struct one {
  static constexpr auto label = text("one");
  template <int TopK>
  SWITCHYARD_HD static void apply(float (&weight)[TopK]) {
    for (float& w : weight) w = 1.0f;
  }
};

/// Divided by their sum (Mixtral, Qwen3-MoE, DeepSeek-V3). The sum is taken as DeepSeek-V3 takes it, plus 1e-20:
/// that shows only where sigmoids have all but vanished.
struct sum {
  static constexpr auto label = text("sum");
  template <int TopK>
  SWITCHYARD_HD static void apply(float (&weight)[TopK]) {
    float total = 1e-20f;
    for (float w : weight) total += w;
    for (float& w : weight) w /= total;
  }
};

/// Divided by their Euclidean norm (DBRX with a p-norm of 2). Scores are not negative; all zeros stay zeros.
struct l2 {
  static constexpr auto label = text("l2");
  template <int TopK>
  SWITCHYARD_HD static void apply(float (&weight)[TopK]) {
    float largest = 0.0f;  // divided out first: squares of small scores would vanish
    for (float w : weight) largest = w > largest ? w : largest;
    if (!(largest > 0.0f)) return;
    float total = 0.0f;
    for (float& w : weight) {
      w /= largest;
      total += w * w;
    }
    float const norm = std::sqrt(total);
    for (float& w : weight) w /= norm;
  }
};

/// The sigmoid of each (Llama 4; with `scores::logits`).
struct sigmoid {
  static constexpr auto label = text("sigmoid");
  template <int TopK>
  SWITCHYARD_HD static void apply(float (&weight)[TopK]) {
    for (float& w : weight) w = 1.0f / (1.0f + std::exp(-w));
  }
};

/// What is positive of each, nothing of the others (product keys as Csordas et al. 2023 have them; with `scores::logits`).
struct relu {
  static constexpr auto label = text("relu");
  template <int TopK>
  SWITCHYARD_HD static void apply(float (&weight)[TopK]) {
    for (float& w : weight) w = w > 0.0f ? w : 0.0f;
  }
};

/// Softmax over the chosen scores only (gpt-oss, Granite-MoE; with `scores::logits`).
struct softmax {
  static constexpr auto label = text("softmax");
  template <int TopK>
  SWITCHYARD_HD static void apply(float (&weight)[TopK]) {
    float largest = weight[0];
    for (float w : weight) largest = w > largest ? w : largest;
    float total = 0.0f;
    for (float& w : weight) {
      w = std::exp(w - largest);
      total += w;
    }
    for (float& w : weight) w /= total;
  }
};

}  // namespace switchyard::router::weighting
