#pragma once

#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/panels.hpp>
#include <switchyard/backend/cpu/product.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/operand.hpp>
#include <switchyard/core/workspace.hpp>

#include <algorithm>
#include <cstdint>

/// Products of few tokens with weights of a matrix that all experts share and a sparse change, each by itself: (X + D) x = X x + D x inside
/// one projection. X meets every token once, however many experts that visits, and D is read as it is stored.
///
///   tokens --X--> base of gate and up --+ D x, activation--> rows --X--> base of down --+ D x--> results
///
/// An item is a block of features of one projection for the rows of all experts: while one worker waits for X to come from memory, another
/// spreads changes.
namespace switchyard::cpu {

/// Calls of so many tokens at most: from there on experts have rows enough for restoring to be as fast. With the experts of OLMoE (64, top
/// 8), 32 columns of a feature take 6.9 cycles restored and 4.8 + 0.8 apart with one row, and 10.2 and 10.8 with three.
inline constexpr int most_apart_tokens = 8;

/// Memory of such a call.
struct apart_memory {
  std::int64_t most_tokens = 0, most_rows = 0;  ///< that there is room for
  float* tokens = nullptr;                      ///< [most_tokens, row_floats(hidden)]
  float* inner = nullptr;                       ///< [most_rows, row_floats(intermediate)]

  apart_memory() = default;
  constexpr apart_memory(carver& from, std::int64_t token_count, int top_k, int hidden, int intermediate)
      : most_tokens(std::min<std::int64_t>(token_count, most_apart_tokens)), most_rows(most_tokens * top_k) {
    tokens = from.take<float>(most_tokens * row_floats(hidden));
    inner = from.take<float>(most_rows * row_floats(intermediate));
  }
};

/// Both products of such a call. `Tokens` and `Weights` are what `run_products` takes.
template <class Operand, class Tokens, class Weights>
class apart_products {
  using element = typename Operand::element;
  using base_view = decltype(Operand::base);

 public:
  apart_products(cpu_context const& where, std::int32_t const* row_offsets, int expert_count, Tokens const& token_rows,
                 expert_activation const& activate, Weights const& from, apart_memory const& apart)
      : context_(where),
        offsets_(row_offsets),
        experts_(expert_count),
        tokens_(token_rows),
        activation_(activate),
        weights_(from),
        apart_(apart),
        kernels_(row_kernels_of<Operand>(where.instructions)),
        base_(row_kernels_of<base_view>(where.instructions)) {}

  /// Whether these products can be taken apart. `least_panel_rows` are the rows from which on an expert is computed by panels.
  bool fit(int least_panel_rows) const {
    std::int64_t const most = std::min<std::int64_t>(item_rows, least_panel_rows - 1);
    if (kernels_.add_change == nullptr || activation_.kept_units > 0) return false;
    if (weights_.hidden % 32 != 0 || weights_.intermediate % 32 != 0) return false;
    if (tokens_.tokens.rows > apart_.most_tokens || offsets_[experts_] > apart_.most_rows) return false;
    if (activation_.gated && weights_.in.gate.base.column_stride != 1) return false;
    if (weights_.in.up.base.column_stride != 1 || weights_.down.base.column_stride != 1) return false;
    for (int e = 0; e < experts_; ++e) {
      if (offsets_[e + 1] - offsets_[e] > most) return false;
    }
    return true;
  }

  /// `activated` and `results` are those of `run_products`.
  void run(float* activated, float* results) const {
    group_tokens(results);
    for_each_block(weights_.intermediate,
                   [&](int first, int features) { project_in(first, features, results, activated); });
    for_each_block(weights_.hidden, [&](int first, int features) { project_out(first, features, activated, results); });
  }

 private:
  int rows_of(int e) const { return offsets_[e + 1] - offsets_[e]; }

  /// Calls `block(first, features)` for all features: every worker wants several.
  template <class Block>
  void for_each_block(int features, Block const& block) const {
    int const size = std::clamp<int>(features / (8 * context_.threads) / 8 * 8, 8, item_features);
    parallel_for(context_, divide_up(features, size), [&](std::int64_t item) {
      int const first = static_cast<int>(item) * size;
      block(first, std::min(size, features - first));
    });
  }

  /// The tokens, and the rows of every expert, as products want them.
  void group_tokens(float* rows_of_experts) const {
    parallel_for(context_, experts_ + 1, [&](std::int64_t item) {
      element const* rows[item_rows];
      if (item == experts_) {
        auto const count = static_cast<int>(tokens_.tokens.rows);
        for (int t = 0; t < count; ++t) rows[t] = tokens_.tokens.row(t);
        base_.group(rows, count, weights_.hidden, apart_.tokens);
      } else if (int const e = static_cast<int>(item); rows_of(e) > 0) {
        tokens_.locate(offsets_[e], rows_of(e), rows);
        kernels_.group(rows, rows_of(e), weights_.hidden, rows_of_experts + offsets_[e] * row_floats(weights_.hidden));
      }
    });
  }

  void project_in(int first, int features, float const* rows_of_experts, float* activated) const {
    int const intermediate = weights_.intermediate;
    float base[2][most_apart_tokens * item_features];  // of gate and up
    auto const multiply_base = [&](base_view const& matrix, float* to) {
      multiply_rows(base_, {apart_.tokens, static_cast<int>(tokens_.tokens.rows)},
                    features_of(matrix, 0, first, features), weights_.hidden, {}, to, item_features);
    };
    if (activation_.gated) multiply_base(weights_.in.gate.base, base[0]);
    multiply_base(weights_.in.up.base, base[1]);
    for (int e = 0; e < experts_; ++e) {
      int const count = rows_of(e);
      if (count == 0) continue;
      float const* const rows = rows_of_experts + offsets_[e] * row_floats(weights_.hidden);
      float gate[item_rows * item_features], up[item_rows * item_features], weight[item_rows];
      if (tokens_.weights != nullptr) tokens_.weights_of(offsets_[e], count, weight);
      auto const project = [&](Operand const& matrix, float const* of_tokens, bias_view<element> const& bias,
                               float* sums) {
        for (int r = 0; r < count; ++r) {
          float const* const of_token = of_tokens + tokens_.token_of(offsets_[e] + r) * item_features;
          std::copy(of_token, of_token + features, sums + r * item_features);
        }
        kernels_.add_change(rows, count, weights_.hidden, features_of(matrix, e, first, features), sums, item_features);
        weigh_and_shift(sums, count, features, tokens_.weights != nullptr ? weight : nullptr, bias, e, first);
      };
      if (activation_.gated) project(weights_.in.gate, base[0], weights_.in.gate_bias, gate);
      project(weights_.in.up, base[1], weights_.in.up_bias, up);
      float* const to = activated + offsets_[e] * row_floats(intermediate);
      for (int r = 0; r < count; ++r) {
        float values[item_features];
        activation_.apply(gate + r * item_features, up + r * item_features, nullptr, 0.0f, 0.0f, features, values);
        kernels_.put(values, features, first, r, count, intermediate, to);
        base_.put(values, features, first, offsets_[e] + r, offsets_[experts_], intermediate, apart_.inner);
      }
    }
  }

  void project_out(int first, int features, float const* activated, float* results) const {
    multiply_rows(base_, {apart_.inner, offsets_[experts_]}, features_of(weights_.down.base, 0, first, features),
                  weights_.intermediate, {}, results + first, weights_.hidden);
    for (int e = 0; e < experts_; ++e) {
      int const count = rows_of(e);
      if (count == 0) continue;
      float* const to = results + std::int64_t{offsets_[e]} * weights_.hidden + first;
      kernels_.add_change(activated + offsets_[e] * row_floats(weights_.intermediate), count, weights_.intermediate,
                          features_of(weights_.down, e, first, features), to, weights_.hidden);
      for (int f = 0; f < features && weights_.down_bias.data != nullptr; ++f) {
        float const bias = weights_.down_bias.at(e, first + f);
        for (int r = 0; r < count; ++r) to[std::int64_t{r} * weights_.hidden + f] += bias;
      }
    }
  }

  cpu_context const& context_;
  std::int32_t const* offsets_;
  int experts_;
  Tokens const& tokens_;
  expert_activation const& activation_;
  Weights const& weights_;
  apart_memory const& apart_;
  row_kernels<Operand> kernels_;
  row_kernels<base_view> base_;
};

}  // namespace switchyard::cpu
