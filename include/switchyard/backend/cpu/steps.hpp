#pragma once

#include <switchyard/expert/feed_forward.hpp>

#include <cstdint>
#include <string>

/// Which code of `backend::cpu` runs a layer: a step for each type that a policy names. A policy that needs another step specialises one
/// of these in a file of its own, and nothing else changes.
///
/// Each step has `memory<Layer>`, its temporaries: `memory(carver&, std::int64_t tokens)` takes them.
namespace switchyard::cpu {

/// How often a layer runs over its tokens, by `Router::schedule`: `run<Layer>(args, context, memory)`.
template <class Schedule>
struct schedule_step;

/// How routes come about, by `Router::source`: `run<Layer>(args, context, memory, routes, names)` writes `routes`,
/// `report<Layer>(args, memory)` what the caller wants to know of it, `auxiliary<Layer>(args, memory, routes, dropped)` the auxiliary
/// values, `tokens_of_experts<Layer>(args, memory)` is what the experts see.
template <class Source>
struct route_step;

/// What happens to the features of tokens before the router product, by `Router::features`: `prepare<Layer>(args, context, memory,
/// product)` says it to the product; `report` and `tokens_of_experts` as above.
template <class Features>
struct feature_step;

/// What the experts compute, by `Expert::computation`: `run<Layer>(args, context, tokens, plan, combine_weights, memory)`. One that may
/// fail has `check<Layer>(args, context)`, too, which throws before anything is written.
template <class Computation>
struct experts_step;

/// What routing writes.
struct routes {
  std::int32_t* experts;  ///< [tokens, top_k]; -1 for a pair that goes nowhere
  float* weights;         ///< [tokens, top_k]
  float* priority;        ///< [tokens]
};

/// What the experts leave for the sum over each token's experts.
template <class Element>
struct expert_results {
  float const* rows = nullptr;  ///< [rows, hidden]
  view<float const> token_sums =
      {};  ///< [tokens, hidden], the weighted sums of rows in their place; no data: rows are summed
  float const* shared_rows = nullptr;    ///< [tokens, hidden], null without a shared expert
  Element const* shared_gate = nullptr;  ///< [hidden], null where nothing gates it
  float scale = 1.0f;                    ///< of the routed experts
  Element const* output_bias = nullptr;  ///< [hidden], null: nothing is added to the sums
  constant_expert_weights<Element> constant_experts = {};
};

/// What the tokens and experts of a call are called in an error, where it is a part of another one.
struct names {
  std::int32_t const* token_of = nullptr;  ///< null: their own numbers
  int first_expert = 0;

  std::string token(std::int64_t t) const { return std::to_string(token_of == nullptr ? t : token_of[t]); }
  std::string expert(std::int64_t e) const { return std::to_string(first_expert + e); }
};

}  // namespace switchyard::cpu
