#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/core/host_device.hpp>
#include <switchyard/core/view.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

namespace switchyard {

/// Values of one routing pass that training and monitoring want; none is multiplied by a coefficient.
///
/// p is the softmax of the logits over all experts, n the number of tokens in a group, E the number of experts.
/// Rows that are not active do not count anywhere, and tokens that could not be routed neither.
struct auxiliary_values {
  /// E * sum over e of (share of tokens whose first choice is e, dropped or not) * (mean p of e), averaged over
  /// groups. Source: Fedus et al. 2021, Switch Transformers, section 2.2; Lepikhin et al. 2020, GShard.
  float balance_first_choice = 0.0f;
  /// The same with all `top_k` choices counted, over the whole batch: at balance it is top_k, not 1.
  /// Source: the Mixtral, Qwen and OLMoE reference codes.
  float balance_all_choices = 0.0f;
  /// As `balance_first_choice`, but a dropped first choice counts for expert 0, as in a widespread port of Switch.
  float balance_kept_choice = 0.0f;
  /// As `balance_kept_choice` with p replaced by the combine weights after dropping.
  /// Source: the NLLB-MoE reference code.
  float balance_combine_weight = 0.0f;
  /// Mean over tokens of logsumexp(logits)^2. Source: Zoph et al. 2022, ST-MoE, section 3.3.
  float z_loss = 0.0f;
  /// Coefficient of variation of the load: standard deviation over mean of the pairs that chose each expert.
  float load_variation = 0.0f;
  /// Sum over e of q log q, where q is the mean p of e over the whole batch, whatever the router makes of the logits: -log E where
  /// experts are used alike, 0 where one is used alone. Source: Csordas et al. 2023, Approximating Two-Layer Feedforward Networks for
  /// Efficient Transformers, section 5 (there the entropy regulariser).
  float negative_entropy = 0.0f;
};

/// The mean of the auxiliary values of several passes, each counting once, as in a stratified layer.
struct mean_auxiliary {
  auxiliary_values sum;
  int passes = 0;

  SWITCHYARD_HD constexpr void add(auxiliary_values const& pass) {
    sum.balance_first_choice += pass.balance_first_choice;
    sum.balance_all_choices += pass.balance_all_choices;
    sum.balance_kept_choice += pass.balance_kept_choice;
    sum.balance_combine_weight += pass.balance_combine_weight;
    sum.z_loss += pass.z_loss;
    sum.load_variation += pass.load_variation;
    sum.negative_entropy += pass.negative_entropy;
    ++passes;
  }
  SWITCHYARD_HD constexpr auxiliary_values mean() const {
    float const count = passes > 0 ? static_cast<float>(passes) : 1.0f;
    return {.balance_first_choice = sum.balance_first_choice / count,
            .balance_all_choices = sum.balance_all_choices / count,
            .balance_kept_choice = sum.balance_kept_choice / count,
            .balance_combine_weight = sum.balance_combine_weight / count,
            .z_loss = sum.z_loss / count,
            .load_variation = sum.load_variation / count,
            .negative_entropy = sum.negative_entropy / count};
  }
};

/// What `auxiliary` reads; all arrays by token, none null but `active`.
struct routing_record {
  std::int64_t tokens = 0;
  std::int64_t tokens_per_group = 0;      ///< 0: one group
  float const* logits = nullptr;          ///< [tokens, experts]
  std::int32_t const* experts = nullptr;  ///< [tokens, top_k], -1 where not routed
  float const* weights = nullptr;         ///< [tokens, top_k], combine weights; a NaN: the token could not be routed
  std::uint8_t const* dropped = nullptr;  ///< [tokens, top_k]
  std::uint8_t const* active = nullptr;   ///< [tokens], 0 for padding rows; null: all are active
};

namespace detail {

/// Doubles of scratch that `auxiliary_of` needs for each expert.
inline constexpr int auxiliary_doubles = 7;

/// The sums that auxiliary values are made of: groups are opened, tokens added, and groups closed. All arrays are [experts].
struct auxiliary_sums {
  int experts, top_k;
  double *batch_probability, *load;                            // of the batch
  double *probability, *combine, *first, *kept, *exponential;  // of the open group; the last is scratch
  double balance_first = 0.0, balance_kept = 0.0, balance_combine = 0.0, z = 0.0;
  std::int64_t groups = 0, active_tokens = 0, counted = 0;  // the last of the open group

  /// `scratch` is [auxiliary_doubles, experts].
  auxiliary_sums(int expert_count, int choices, double* scratch)
      : experts(expert_count),
        top_k(choices),
        batch_probability(scratch),
        load(scratch + experts),
        probability(load + experts),
        combine(probability + experts),
        first(combine + experts),
        kept(first + experts),
        exponential(kept + experts) {
    std::fill(batch_probability, probability, 0.0);
  }

  void open_group() {
    std::fill(probability, exponential, 0.0);
    counted = 0;
  }

  void add(routing_record const& record, std::int64_t begin, std::int64_t end) {
    for (std::int64_t token = begin; token < end; ++token) {
      if (record.active != nullptr && !record.active[token]) continue;
      if (std::isnan(record.weights[token * top_k])) continue;  // it could not be routed
      ++counted;
      float const* const logits = record.logits + token * experts;
      double largest = logits[0], total = 0.0;
      for (int e = 1; e < experts; ++e) largest = logits[e] > largest ? logits[e] : largest;
      for (int e = 0; e < experts; ++e) total += exponential[e] = std::exp(logits[e] - largest);
      for (int e = 0; e < experts; ++e) probability[e] += exponential[e] / total;
      double const log_sum = largest + std::log(total);
      z += log_sum * log_sum;
      for (int k = 0; k < top_k; ++k) {
        std::int64_t const pair = token * top_k + k;
        std::int32_t const expert = record.experts[pair];
        if (expert < 0) continue;
        load[expert] += 1.0;
        if (!record.dropped[pair]) combine[expert] += record.weights[pair];
        if (k > 0) continue;
        first[expert] += 1.0;
        kept[record.dropped[pair] ? 0 : expert] += 1.0;
      }
    }
  }

  void close_group() {
    if (counted == 0) return;
    ++groups;
    active_tokens += counted;
    double const n = static_cast<double>(counted);
    for (int e = 0; e < experts; ++e) {
      balance_first += first[e] / n * (probability[e] / n);
      balance_kept += kept[e] / n * (probability[e] / n);
      balance_combine += kept[e] / n * (combine[e] / n);
      batch_probability[e] += probability[e];
    }
  }

  auxiliary_values result() const {
    auxiliary_values values;
    if (active_tokens == 0) return values;
    double const n = static_cast<double>(active_tokens), group_count = static_cast<double>(groups);
    double balance_all = 0.0, square = 0.0, entropy = 0.0;
    double const mean = n * top_k / experts;
    for (int e = 0; e < experts; ++e) {
      balance_all += load[e] / n * (batch_probability[e] / n);
      square += (load[e] - mean) * (load[e] - mean);
      double const q = batch_probability[e] / n;
      if (q > 0.0) entropy += q * std::log(q);
    }
    values.balance_first_choice = static_cast<float>(experts * balance_first / group_count);
    values.balance_all_choices = static_cast<float>(experts * balance_all);
    values.balance_kept_choice = static_cast<float>(experts * balance_kept / group_count);
    values.balance_combine_weight = static_cast<float>(experts * balance_combine / group_count);
    values.z_loss = static_cast<float>(z / n);
    values.load_variation = static_cast<float>(std::sqrt(square / experts) / mean);
    values.negative_entropy = static_cast<float>(entropy);
    return values;
  }
};

/// `auxiliary` for sizes of run time; `scratch` is [auxiliary_doubles, experts].
inline auxiliary_values auxiliary_of(routing_record const& record, int experts, int top_k, double* scratch) {
  std::int64_t const group_size = record.tokens_per_group > 0 ? record.tokens_per_group : record.tokens;
  auxiliary_sums sums(experts, top_k, scratch);
  for (std::int64_t begin = 0; begin < record.tokens; begin += group_size) {
    sums.open_group();
    sums.add(record, begin, begin + group_size < record.tokens ? begin + group_size : record.tokens);
    sums.close_group();
  }
  return sums.result();
}

}  // namespace detail

/// The auxiliary values of a routing pass, on the calling thread: O(tokens * experts). Sums are taken in double and in
/// token order; they need 56 bytes of stack per expert.
template <int Experts, int TopK>
auxiliary_values auxiliary(routing_record const& record) {
  double scratch[detail::auxiliary_doubles * Experts];
  return detail::auxiliary_of(record, Experts, TopK, scratch);
}

/// Half the sum of two squared coefficients of variation over experts (unbiased variance over squared mean plus
/// 1e-10): of the importance, sum over tokens of p, and of the smooth load, sum over tokens of
/// Phi((p - k-th largest p) * experts / gate_noise).
///
/// Source: Shazeer et al. 2017, Outrageously Large Neural Networks, section 4 and appendix A, in the form of the
/// Tutel reference code. Needs at least two experts.
template <int Experts, int TopK>
float load_importance_loss(view<float const> logits, float gate_noise = 1.0f) {
  static_assert(Experts >= 2 && TopK >= 1 && TopK <= Experts,
                "switchyard: load_importance_loss needs at least two experts and a top_k from 1 to that number.");
  if (logits.columns != Experts) {
    fail("load_importance_loss, logits", std::to_string(Experts) + " columns", std::to_string(logits.columns));
  }
  if (!(gate_noise > 0.0f)) {
    fail("load_importance_loss, gate_noise", "a positive number", std::to_string(gate_noise));
  }
  double importance[Experts] = {}, load[Experts] = {};
  for (std::int64_t token = 0; token < logits.rows; ++token) {
    float const* const row = logits.row(token);
    double largest = row[0], total = 0.0, p[Experts];
    for (int e = 1; e < Experts; ++e) largest = row[e] > largest ? row[e] : largest;
    for (int e = 0; e < Experts; ++e) total += p[e] = std::exp(row[e] - largest);
    for (int e = 0; e < Experts; ++e) importance[e] += p[e] /= total;
    double threshold = 0.0;  // the k-th largest: fewer than k are above it, at least k are not below it
    for (int e = 0; e < Experts; ++e) {
      int above = 0, equal = 0;
      for (int other = 0; other < Experts; ++other) {
        above += p[other] > p[e];
        equal += p[other] == p[e];
      }
      if (above < TopK && above + equal >= TopK) threshold = p[e];
    }
    for (int e = 0; e < Experts; ++e) {
      load[e] += 0.5 * std::erfc(-(p[e] - threshold) * Experts / gate_noise * 0.70710678118654752);
    }
  }
  auto const squared_variation = [](double const(&value)[Experts]) {
    double mean = 0.0, square = 0.0;
    for (double v : value) mean += v / Experts;
    for (double v : value) square += (v - mean) * (v - mean) / (Experts - 1);
    return square / (mean * mean + 1e-10);
  };
  return static_cast<float>(0.5 * (squared_variation(importance) + squared_variation(load)));
}

}  // namespace switchyard
