#pragma once

#include <switchyard/auxiliary.hpp>
#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/route.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/dispatch/pass.hpp>
#include <switchyard/layer.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>

/// What `backend::cpu` does between the passes of a stratified layer.
namespace switchyard::backend::detail {

/// The tokens on their way through the strata, and what was decided about them.
template <class Element>
struct strata_record {
  std::int32_t* token_of;    ///< [tokens] of the pass at hand: which token each row is
  std::uint8_t* stratum;     ///< [tokens] where each token is; the number of strata: done
  std::uint8_t* passes;      ///< [tokens]
  Element* current;          ///< [tokens, hidden] after the last pass
  Element* residual;         ///< [tokens, hidden] what the next pass adds; may be `current`
  std::int32_t* experts_of;  ///< [strata, tokens, top_k], and so on, as in `decisions`
  float* weights_of;
  std::uint8_t* dropped_of;
  std::int64_t *count_of, *load_of;  ///< [experts]
  mean_auxiliary auxiliary;
};

inline constexpr int strata_tokens = 8;  // tokens per item

/// Puts every token into the lowest stratum, and padding past the highest.
template <class Layer>
void begin_strata(forward_args<Layer> const& args, strata_record<typename Layer::element> const& to) {
  constexpr int strata = Layer::router_traits.stratification.strata;
  std::int64_t const tokens = args.tokens.rows, pairs = strata * tokens * Layer::dims.top_k;
  for (std::int64_t t = 0; t < tokens; ++t) to.stratum[t] = is_active(args.active, t) ? 0 : strata;
  std::fill(to.passes, to.passes + tokens, std::uint8_t{0});
  std::fill(to.experts_of, to.experts_of + pairs, -1);
  std::fill(to.weights_of, to.weights_of + pairs, 0.0f);
  std::fill(to.dropped_of, to.dropped_of + pairs, std::uint8_t{0});
  std::fill(to.count_of, to.count_of + Layer::dims.experts, std::int64_t{0});
  std::fill(to.load_of, to.load_of + Layer::dims.experts, std::int64_t{0});
}

/// The tokens in a stratum, one after the other: returns how many.
template <int Stratum, class Layer>
std::int64_t gather_stratum(forward_args<Layer> const& args, cpu_context const& where,
                            strata_record<typename Layer::element> const& of, typename Layer::element* rows) {
  constexpr std::int64_t hidden = Layer::dims.hidden;
  std::int64_t count = 0;
  for (std::int64_t t = 0; t < args.tokens.rows; ++t) {
    if (of.stratum[t] == Stratum) of.token_of[count++] = static_cast<std::int32_t>(t);
  }
  parallel_for(where, divide_up(count, strata_tokens), [&](std::int64_t item) {
    std::int64_t const end = std::min(count, (item + 1) * strata_tokens);
    for (std::int64_t row = item * strata_tokens; row < end; ++row) {
      std::int64_t const t = of.token_of[row];
      auto const* const from = Stratum == 0 ? args.tokens.row(t) : of.current + t * hidden;
      std::copy(from, from + hidden, rows + row * hidden);
    }
  });
  return count;
}

/// to = layer norm(result + residual), and `sum`, where it is not null, the same before the norm. `to` may be `residual`.
template <class Element>
void add_and_normalise(Element const* result, Element const* residual, layer_norm const* norm, int hidden, Element* to,
                       Element* sum) {
  constexpr int lanes = 16;  // sums side by side, for a compiler that keeps their order
  auto const value = [&](int q) { return static_cast<float>(result[q]) + static_cast<float>(residual[q]); };
  auto const mean_of = [&](auto const& term) {
    float partial[lanes] = {};
    for (int q = 0; q < hidden; q += lanes) {
      for (int i = 0; i < std::min(lanes, hidden - q); ++i) partial[i] += term(q + i);
    }
    float total = 0.0f;
    for (float p : partial) total += p;
    return total / static_cast<float>(hidden);
  };
  if (norm == nullptr) {
    for (int q = 0; q < hidden; ++q) to[q] = Element(value(q));
    return;
  }
  float const mean = mean_of(value);
  float const variance = mean_of([&](int q) { return (value(q) - mean) * (value(q) - mean); });
  float const scale = 1.0f / std::sqrt(variance + norm->epsilon);
  for (int q = 0; q < hidden; ++q) {
    float const v = value(q);
    to[q] = Element((v - mean) * scale * norm->weight[q] + norm->bias[q]);
    if (sum != nullptr) sum[q] = Element(v);
  }
}

/// Brings the rows of a pass back to their tokens, and each token to its next stratum. `of_pass` has the rows as output.
template <int Stratum, class Layer, class Pass>
void finish_pass(forward_args<Layer> const& args, cpu_context const& where, forward_args<Pass> const& of_pass,
                 strata_record<typename Layer::element> const& to) {
  constexpr int hidden = Layer::dims.hidden, top_k = Layer::dims.top_k, pass_top_k = Pass::dims.top_k;
  constexpr int first_expert = Layer::router::first_expert(Stratum);
  decisions const& decided = of_pass.decisions;
  std::int64_t const rows = of_pass.tokens.rows;
  parallel_for(where, divide_up(rows, strata_tokens), [&](std::int64_t item) {
    std::int64_t const end = std::min(rows, (item + 1) * strata_tokens);
    for (std::int64_t row = item * strata_tokens; row < end; ++row) {
      std::int64_t const t = to.token_of[row];
      int const next = dispatch::next_stratum<Layer>(first_expert + decided.experts[row * pass_top_k]);
      to.stratum[t] = static_cast<std::uint8_t>(next);
      ++to.passes[t];
      layer_norm const* norm = nullptr;
      if constexpr (Layer::router_traits.stratification.norms) norm = &args.weights.norm.after[next - 1];
      auto* const residual = to.residual + t * hidden;
      add_and_normalise(of_pass.output.row(row), Stratum == 0 ? args.residual.row(t) : residual, norm, hidden,
                        to.current + t * hidden, to.residual == to.current ? nullptr : residual);
      std::int64_t const pairs = (Stratum * args.tokens.rows + t) * top_k;
      for (int k = 0; k < pass_top_k; ++k) {
        std::int64_t const pair = row * pass_top_k + k;
        to.experts_of[pairs + k] = first_expert + decided.experts[pair];
        to.weights_of[pairs + k] = decided.weights[pair];
        to.dropped_of[pairs + k] = decided.dropped[pair];
      }
    }
  });
  for (int e = 0; e < Pass::dims.experts; ++e) {
    to.count_of[first_expert + e] += decided.counts[e];
    to.load_of[first_expert + e] += decided.load[e];
  }
}

/// Writes the output and what the caller wants to know. Nothing can fail from here on.
template <class Layer>
void end_strata(forward_args<Layer> const& args, cpu_context const& where,
                strata_record<typename Layer::element> const& from) {
  constexpr std::int64_t hidden = Layer::dims.hidden;
  std::int64_t const tokens = args.tokens.rows;
  parallel_for(where, divide_up(tokens, strata_tokens), [&](std::int64_t item) {
    std::int64_t const end = std::min(tokens, (item + 1) * strata_tokens);
    for (std::int64_t t = item * strata_tokens; t < end; ++t) {
      auto* const y = args.output.row(t);
      if (is_active(args.active, t)) {
        std::copy(from.current + t * hidden, from.current + (t + 1) * hidden, y);
      } else {
        std::fill(y, y + hidden, typename Layer::element(0.0f));
      }
    }
  });
  auto const report = [](auto const* values, std::int64_t count, auto* to) {
    if (to != nullptr) std::copy(values, values + count, to);
  };
  std::int64_t const pairs = Layer::router_traits.stratification.strata * tokens * Layer::dims.top_k;
  report(from.experts_of, pairs, args.decisions.experts);
  report(from.weights_of, pairs, args.decisions.weights);
  report(from.dropped_of, pairs, args.decisions.dropped);
  report(from.count_of, Layer::dims.experts, args.decisions.counts);
  report(from.load_of, Layer::dims.experts, args.decisions.load);
  report(from.passes, tokens, args.decisions.passes);
  if (args.auxiliary != nullptr) *args.auxiliary = from.auxiliary.mean();
}

}  // namespace switchyard::backend::detail
