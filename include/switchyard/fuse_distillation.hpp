#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/core/view.hpp>

#include <cmath>
#include <cstdint>
#include <string>

namespace switchyard {

/// The logits of two passes over one batch, and where their gradients go; host memory. A position is a word that is to
/// be predicted.
struct fuse_distillation_args {
  view<float const> language_logits = {};  ///< [positions, vocabulary], of the path of the words' own language
  view<float const> shared_logits = {};    ///< [positions, vocabulary], of the path that all languages share
  std::uint8_t const* active = nullptr;    ///< [positions], 0 for padding; null: all are active
  view<float> language_gradient = {};  ///< [positions, vocabulary], may be the logits' own memory; no data: not wanted
  view<float> shared_gradient = {};    ///< the same for the other path
};

/// What the training loss compares the paths with, and how.
struct fuse_distillation_targets {
  std::int32_t const* words = nullptr;  ///< [positions], from 0 to vocabulary - 1 where active; others are not read
  double label_smoothing = 0.1;         ///< what all words but the right one share, at least 0 and less than 1
  double weight = 1.0;                  ///< of the distillation, at least 0
};

/// All are sums over active positions, in nats.
struct fuse_distillation_losses {
  double loss = 0.0;                    ///< (language_cross_entropy + shared_cross_entropy) / 2 + weight * distillation
  double language_cross_entropy = 0.0;  ///< with label smoothing, as the next
  double shared_cross_entropy = 0.0;
  double distillation = 0.0;  ///< what `fuse_distillation` gives
};

namespace detail {

/// The logarithm of a row's softmax. The softmax itself would be 0 where its logarithm is far from infinite.
class log_softmax {
 public:
  log_softmax(float const* row, std::int64_t count) : largest_(row[0]) {
    for (std::int64_t i = 1; i < count; ++i) largest_ = row[i] > largest_ ? row[i] : largest_;
    double total = 0.0;
    for (std::int64_t i = 0; i < count; ++i) total += std::exp(row[i] - largest_);
    log_total_ = std::log(total);
  }
  double operator()(float logit) const { return (logit - largest_) - log_total_; }

 private:
  double largest_, log_total_ = 0.0;
};

inline void check_fuse_distillation(fuse_distillation_args const& args, fuse_distillation_targets const* targets) {
  std::int64_t const positions = args.language_logits.rows, vocabulary = args.language_logits.columns;
  auto const check = [&](auto const& matrix, char const* name) {
    auto const what = [&] { return std::string("fuse_distillation, ") + name; };
    if (matrix.rows != positions || matrix.columns != vocabulary) {
      fail(what(), std::to_string(positions) + " x " + std::to_string(vocabulary) + " (positions x vocabulary)",
           std::to_string(matrix.rows) + " x " + std::to_string(matrix.columns));
    }
    if (positions > 1 && matrix.row_stride < vocabulary) {
      fail(what() + ", row stride", "at least " + std::to_string(vocabulary), std::to_string(matrix.row_stride));
    }
    if (positions > 0 && matrix.data == nullptr) fail(what(), "a matrix", "a null pointer");
  };
  if (positions < 0 || vocabulary < 1) {
    fail("fuse_distillation, language_logits", "at least 0 x 1 (positions x vocabulary)",
         std::to_string(positions) + " x " + std::to_string(vocabulary));
  }
  check(args.language_logits, "language_logits");
  check(args.shared_logits, "shared_logits");
  if (args.language_gradient.data != nullptr) check(args.language_gradient, "language_gradient");
  if (args.shared_gradient.data != nullptr) check(args.shared_gradient, "shared_gradient");
  if (targets == nullptr) return;

  if (!(targets->label_smoothing >= 0.0 && targets->label_smoothing < 1.0)) {
    fail("fuse_distillation, label_smoothing", "a number from 0 to less than 1",
         std::to_string(targets->label_smoothing));
  }
  if (targets->label_smoothing > 0.0 && vocabulary < 2) {
    fail("fuse_distillation, label_smoothing", "0 where the vocabulary has one word",
         std::to_string(targets->label_smoothing));
  }
  if (!(targets->weight >= 0.0 && std::isfinite(targets->weight))) {
    fail("fuse_distillation, weight", "a finite number that is not negative", std::to_string(targets->weight));
  }
  if (positions > 0 && targets->words == nullptr) {
    fail("fuse_distillation, words", std::to_string(positions) + " words", "a null pointer");
  }
  for (std::int64_t position = 0; position < positions; ++position) {
    if (args.active != nullptr && args.active[position] == 0) continue;
    std::int32_t const word = targets->words[position];
    if (word < 0 || word >= vocabulary) {
      fail("fuse_distillation, words", "words from 0 to " + std::to_string(vocabulary - 1),
           std::to_string(word) + " at position " + std::to_string(position));
    }
  }
}

/// Both losses; without targets, the distillation alone.
inline fuse_distillation_losses fuse_distillation_of(fuse_distillation_args const& args,
                                                     fuse_distillation_targets const* targets) {
  check_fuse_distillation(args, targets);
  fuse_distillation_losses result;
  std::int64_t const positions = args.language_logits.rows, vocabulary = args.language_logits.columns;
  double const distillation_weight = targets == nullptr ? 1.0 : targets->weight;
  double const right = targets == nullptr ? 0.0 : 1.0 - targets->label_smoothing;
  double const wrong =
      vocabulary < 2 || targets == nullptr ? 0.0 : targets->label_smoothing / static_cast<double>(vocabulary - 1);

  for (std::int64_t position = 0; position < positions; ++position) {
    float* const p_gradient = args.language_gradient.data == nullptr ? nullptr : args.language_gradient.row(position);
    float* const q_gradient = args.shared_gradient.data == nullptr ? nullptr : args.shared_gradient.row(position);
    if (args.active != nullptr && args.active[position] == 0) {
      for (std::int64_t v = 0; v < vocabulary; ++v) {
        if (p_gradient != nullptr) p_gradient[v] = 0.0f;
        if (q_gradient != nullptr) q_gradient[v] = 0.0f;
      }
      continue;
    }
    float const* const p_logits = args.language_logits.row(position);
    float const* const q_logits = args.shared_logits.row(position);
    log_softmax const log_p(p_logits, vocabulary), log_q(q_logits, vocabulary);
    // Words that both paths close with a logit of minus infinity are as if they were not there.
    auto const ratio = [](double lp, double lq) { return lp == lq ? 0.0 : lp - lq; };

    double divergence = 0.0, p_divergence = 0.0, q_divergence = 0.0;  // the sum, KL(P || Q) and KL(Q || P)
    double p_others = 0.0, q_others = 0.0;
    std::int64_t const word = targets == nullptr ? -1 : targets->words[position];
    for (std::int64_t v = 0; v < vocabulary; ++v) {
      double const lp = log_p(p_logits[v]), lq = log_q(q_logits[v]);
      double const p = std::exp(lp), q = std::exp(lq), r = ratio(lp, lq);
      divergence += (p - q) * r;
      p_divergence += p * r;
      q_divergence -= q * r;
      if (v == word) continue;
      p_others += lp;
      q_others += lq;
    }
    result.distillation += 0.5 * divergence;
    if (targets != nullptr) {
      result.language_cross_entropy -= right * log_p(p_logits[word]);
      result.shared_cross_entropy -= right * log_q(q_logits[word]);
      if (wrong > 0.0) {  // else 0 times the infinite logarithm of a word that is closed
        result.language_cross_entropy -= wrong * p_others;
        result.shared_cross_entropy -= wrong * q_others;
      }
    }

    if (p_gradient == nullptr && q_gradient == nullptr) continue;
    for (std::int64_t v = 0; v < vocabulary; ++v) {
      double const lp = log_p(p_logits[v]), lq = log_q(q_logits[v]);
      double const p = std::exp(lp), q = std::exp(lq), r = ratio(lp, lq);
      double of_p = distillation_weight * 0.5 * (p * (r - p_divergence) + (p - q));
      double of_q = distillation_weight * 0.5 * (q * (-r - q_divergence) + (q - p));
      if (targets != nullptr) {
        double const label = v == word ? right : wrong;
        of_p += 0.5 * (p - label);
        of_q += 0.5 * (q - label);
      }
      if (p_gradient != nullptr) p_gradient[v] = static_cast<float>(of_p);
      if (q_gradient != nullptr) q_gradient[v] = static_cast<float>(of_q);
    }
  }
  result.loss =
      0.5 * (result.language_cross_entropy + result.shared_cross_entropy) + distillation_weight * result.distillation;
  return result;
}

}  // namespace detail

/// The loss that makes the language-specific and the shared path of a model imitate each other: the symmetric
/// divergence (KL(P || Q) + KL(Q || P)) / 2 of their softmaxes P and Q, summed over active positions, in nats. Divide
/// it, and gradients, by the number of positions for a mean.
///
/// Gradients are those of the sum with respect to both logits, with neither path held fixed; what was in their memory
/// is overwritten, and rows of padding become 0. Everything is computed in double from the logarithms of the softmaxes,
/// in the order of positions, on the calling thread: O(positions * vocabulary), without memory of its own. Finite
/// logits, however far apart, give finite numbers. A word that both paths close with a logit of minus infinity does not
/// count; closed in one alone, there is no finite loss. A NaN goes through.
///
/// Throws `error` when matrices differ in shape, or one that is wanted is missing.
/// Source: Xu et al. 2023, Condensing Multilingual Knowledge with Lightweight Language-Specific Modules, fuse
/// distillation, and its reference code, which takes the logarithm of the softmax instead.
inline double fuse_distillation(fuse_distillation_args const& args) {
  return detail::fuse_distillation_of(args, nullptr).distillation;
}

/// The whole loss that a model with language-specific and shared paths is trained with: the mean of the paths' cross
/// entropies, and the weighted distillation. The labels are 1 - label_smoothing for the right word and label_smoothing
/// / (vocabulary - 1) for each other.
///
/// Gradients, which are those of `loss`, and all else are as in `fuse_distillation`. Throws `error` also for a word
/// that is not in the vocabulary, a smoothing that is not in [0, 1), and a weight that is negative or not finite.
/// Source: as there.
inline fuse_distillation_losses fuse_distillation_training(fuse_distillation_args const& args,
                                                           fuse_distillation_targets const& targets) {
  return detail::fuse_distillation_of(args, &targets);
}

}  // namespace switchyard
