#pragma once

#include <switchyard/auxiliary.hpp>
#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/cpu.hpp>
#include <switchyard/backend/cpu/route.hpp>
#include <switchyard/backend/cpu/steps.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/view.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/dispatch/pass.hpp>
#include <switchyard/layer.hpp>
#include <switchyard/router/stratified.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

/// How `backend::cpu` runs a stratified layer: each pass is an ordinary one, and this is what happens between them.
namespace switchyard::cpu {

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

/// The sizes of a stratified layer.
struct strata_shape {
  int hidden, experts, top_k, strata;
};

/// Puts every token into the lowest stratum, and padding past the highest.
template <class Element>
void begin_strata(strata_shape const& of, std::int64_t tokens, std::uint8_t const* active,
                  strata_record<Element> const& to) {
  std::int64_t const pairs = of.strata * tokens * of.top_k;
  for (std::int64_t t = 0; t < tokens; ++t) {
    to.stratum[t] = is_active(active, t) ? std::uint8_t{0} : static_cast<std::uint8_t>(of.strata);
  }
  std::fill(to.passes, to.passes + tokens, std::uint8_t{0});
  std::fill(to.experts_of, to.experts_of + pairs, -1);
  std::fill(to.weights_of, to.weights_of + pairs, 0.0f);
  std::fill(to.dropped_of, to.dropped_of + pairs, std::uint8_t{0});
  std::fill(to.count_of, to.count_of + of.experts, std::int64_t{0});
  std::fill(to.load_of, to.load_of + of.experts, std::int64_t{0});
}

/// The tokens in a stratum, one after the other: returns how many.
template <class Element>
std::int64_t gather_stratum(int stratum, view<Element const> const& tokens, int hidden, cpu_context const& context,
                            strata_record<Element> const& of, Element* rows) {
  std::int64_t count = 0;
  for (std::int64_t t = 0; t < tokens.rows; ++t) {
    if (of.stratum[t] == stratum) of.token_of[count++] = static_cast<std::int32_t>(t);
  }
  parallel_for(context, divide_up(count, strata_tokens), [&](std::int64_t item) {
    std::int64_t const end = std::min(count, (item + 1) * strata_tokens);
    for (std::int64_t row = item * strata_tokens; row < end; ++row) {
      std::int64_t const t = of.token_of[row];
      Element const* const from = stratum == 0 ? tokens.row(t) : of.current + t * hidden;
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

/// A pass that has been made: its rows as output, its decisions, and what its experts are called in the layer.
template <class Element>
struct made_pass {
  int stratum, first_expert, experts, top_k;
  view<Element const> residual;  ///< that of the block, which the first pass adds
  view<Element> rows;
  decisions decided;
  layer_norm const* norms;          ///< [strata], null: none
  int (*next_stratum)(int expert);  ///< of a token with this first choice
};

/// Brings the rows of a pass back to their tokens, and each token to its next stratum.
template <class Element>
void finish_pass(made_pass<Element> const& pass, strata_shape const& of, cpu_context const& context,
                 strata_record<Element> const& to) {
  decisions const& decided = pass.decided;
  std::int64_t const rows = pass.rows.rows, hidden = of.hidden;
  parallel_for(context, divide_up(rows, strata_tokens), [&](std::int64_t item) {
    std::int64_t const end = std::min(rows, (item + 1) * strata_tokens);
    for (std::int64_t row = item * strata_tokens; row < end; ++row) {
      std::int64_t const t = to.token_of[row];
      // A token that could not be routed is a NaN by now, and done.
      std::int32_t const first_choice = decided.experts[row * pass.top_k];
      int const next = first_choice < 0 ? of.strata : pass.next_stratum(pass.first_expert + first_choice);
      to.stratum[t] = static_cast<std::uint8_t>(next);
      ++to.passes[t];
      layer_norm const* const norm = pass.norms == nullptr ? nullptr : pass.norms + (next - 1);
      Element* const residual = to.residual + t * hidden;
      add_and_normalise<Element>(pass.rows.row(row), pass.stratum == 0 ? pass.residual.row(t) : residual, norm,
                                 of.hidden, to.current + t * hidden, to.residual == to.current ? nullptr : residual);
      std::int64_t const pairs = (pass.stratum * pass.residual.rows + t) * of.top_k;
      for (int k = 0; k < pass.top_k; ++k) {
        std::int64_t const pair = row * pass.top_k + k;
        if (first_choice >= 0) to.experts_of[pairs + k] = pass.first_expert + decided.experts[pair];
        to.weights_of[pairs + k] = decided.weights[pair];
        to.dropped_of[pairs + k] = decided.dropped[pair];
      }
    }
  });
  for (int e = 0; e < pass.experts; ++e) {
    to.count_of[pass.first_expert + e] += decided.counts[e];
    to.load_of[pass.first_expert + e] += decided.load[e];
  }
}

/// Writes the output and what the caller wants to know. Nothing can fail from here on.
template <class Element>
void end_strata(strata_shape const& of, view<Element> const& output, std::uint8_t const* active, decisions const& asked,
                std::uint8_t* passes, auxiliary_values* auxiliary, cpu_context const& context,
                strata_record<Element> const& from) {
  std::int64_t const tokens = output.rows, hidden = of.hidden;
  parallel_for(context, divide_up(tokens, strata_tokens), [&](std::int64_t item) {
    std::int64_t const end = std::min(tokens, (item + 1) * strata_tokens);
    for (std::int64_t t = item * strata_tokens; t < end; ++t) {
      Element* const y = output.row(t);
      if (is_active(active, t)) {
        std::copy(from.current + t * hidden, from.current + (t + 1) * hidden, y);
      } else {
        std::fill(y, y + hidden, Element(0.0f));
      }
    }
  });
  auto const report = [](auto const* values, std::int64_t count, auto* to) {
    if (to != nullptr) std::copy(values, values + count, to);
  };
  std::int64_t const pairs = of.strata * tokens * of.top_k;
  report(from.experts_of, pairs, asked.experts);
  report(from.weights_of, pairs, asked.weights);
  report(from.dropped_of, pairs, asked.dropped);
  report(from.count_of, of.experts, asked.counts);
  report(from.load_of, of.experts, asked.load);
  report(from.passes, tokens, passes);
  if (auxiliary != nullptr) *auxiliary = from.auxiliary.mean();
}

/// A layer that runs over its tokens pass by pass. The output is written when all passes have succeeded.
template <router::stratum_form Form, int... Experts>
struct schedule_step<router::climbing<Form, Experts...>> {
  using schedule = router::climbing<Form, Experts...>;
  using one_pass = schedule_step<router::one_pass>;

  template <class Layer, int Stratum>
  using pass_memory = typename one_pass::template memory<dispatch::pass_layer<Layer, Stratum>>;

  /// What passes leave to each other, and what a pass decides.
  template <class Layer>
  struct passes_memory : strata_record<typename Layer::element> {
    typename Layer::element* rows;  // [tokens, hidden]: of one pass, its result in place of its tokens
    std::int32_t* experts;          // [tokens, top_k], and so on: what a pass decided
    float* weights;
    std::uint8_t* dropped;
    std::int64_t *counts, *load;  // [experts]

    constexpr passes_memory(carver& from, std::int64_t tokens) {
      constexpr shape dims = Layer::dims;
      std::int64_t const pairs = tokens * dims.top_k, matrix = tokens * dims.hidden;
      this->token_of = from.take<std::int32_t>(tokens);
      this->stratum = from.take<std::uint8_t>(tokens);
      this->passes = from.take<std::uint8_t>(tokens);
      this->current = this->residual = from.take<typename Layer::element>(matrix);
      if constexpr (Form.norms && !Form.normalised_residual)
        this->residual = from.take<typename Layer::element>(matrix);
      this->experts_of = from.take<std::int32_t>(schedule::strata * pairs);
      this->weights_of = from.take<float>(schedule::strata * pairs);
      this->dropped_of = from.take<std::uint8_t>(schedule::strata * pairs);
      this->count_of = from.take<std::int64_t>(dims.experts);
      this->load_of = from.take<std::int64_t>(dims.experts);
      rows = from.take<typename Layer::element>(matrix);
      experts = from.take<std::int32_t>(pairs);
      weights = from.take<float>(pairs);
      dropped = from.take<std::uint8_t>(pairs);
      counts = from.take<std::int64_t>(dims.experts);
      load = from.take<std::int64_t>(dims.experts);
    }
  };

  template <class Layer>
  struct memory : passes_memory<Layer> {
    std::byte* of_pass;  // in turn of each

    constexpr memory(carver& from, std::int64_t tokens)
        : passes_memory<Layer>(from, tokens),
          of_pass(from.take<std::byte>(dispatch::bytes_of_largest_pass<Layer, one_pass::template memory>(tokens))) {}
  };

  template <class Layer>
  static void run(forward_args<Layer> const& args, cpu_context const& context, memory<Layer>& m) {
    run_passes(
        args, context, m,
        [&]<int Stratum>(forward_args<dispatch::pass_layer<Layer, Stratum>> const& of_pass, names const& called) {
          if (of_pass.tokens.rows == 0) return false;
          carver split(m.of_pass);
          pass_memory<Layer, Stratum> memory_of_pass(split, of_pass.tokens.rows);
          one_pass::template run<dispatch::pass_layer<Layer, Stratum>>(of_pass, context, memory_of_pass, called);
          return true;
        });
  }

  /// The same where a pass is run by `run_pass<Stratum>(its arguments, names)`, which says whether any token made it.
  template <class Layer, class RunPass>
  static void run_passes(forward_args<Layer> const& args, cpu_context const& context, passes_memory<Layer>& m,
                         RunPass const& run_pass) {
    begin_strata(strata_of<Layer>, args.tokens.rows, args.active, m);
    dispatch::for_each_pass<Layer>([&]<int Stratum>() { make_pass<Stratum>(args, context, m, run_pass); });
    end_strata(strata_of<Layer>, args.output, args.active, args.decisions, args.report.passes, args.auxiliary, context,
               m);
  }

 private:
  template <class Layer>
  static constexpr strata_shape strata_of{Layer::dims.hidden, Layer::dims.experts, Layer::dims.top_k, schedule::strata};

  template <int Stratum, class Layer, class RunPass>
  static void make_pass(forward_args<Layer> const& args, cpu_context const& context, passes_memory<Layer>& m,
                        RunPass const& run_pass) {
    using pass = dispatch::pass_layer<Layer, Stratum>;
    using element = typename Layer::element;
    constexpr int first_expert = schedule::first_expert(Stratum);
    std::int64_t const tokens = gather_stratum(Stratum, args.tokens, Layer::dims.hidden, context, m, m.rows);
    forward_args<pass> of_pass = dispatch::pass_args<Stratum>(args);
    auxiliary_values auxiliary;
    of_pass.tokens = pass::rows(static_cast<element const*>(m.rows), tokens);
    of_pass.output = pass::rows(m.rows, tokens);
    of_pass.decisions = {m.experts, m.weights, m.dropped, m.counts, m.load};
    if (args.auxiliary != nullptr) of_pass.auxiliary = &auxiliary;
    if (!run_pass.template operator()<Stratum>(of_pass, names{m.token_of, first_expert})) return;
    layer_norm const* norms = nullptr;
    if constexpr (Form.norms) norms = args.inputs.norm.after;
    finish_pass<element>({.stratum = Stratum,
                          .first_expert = first_expert,
                          .experts = pass::dims.experts,
                          .top_k = pass::dims.top_k,
                          .residual = args.inputs.residual,
                          .rows = of_pass.output,
                          .decided = of_pass.decisions,
                          .norms = norms,
                          .next_stratum = &schedule::next_stratum},
                         strata_of<Layer>, context, m);
    if (args.auxiliary != nullptr) m.auxiliary.add(auxiliary);
  }
};

}  // namespace switchyard::cpu
