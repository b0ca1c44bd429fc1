#pragma once

#include <switchyard/backend/cuda/half_rows.cuh>
#include <switchyard/expert/feed_forward.hpp>

#include <cstdint>

/// Which code of the GPU's backends runs a layer: a step for each type that a policy names, as in backend/cpu/steps.hpp. A policy that
/// needs another step specialises one of these in a file of its own, and nothing else changes.
///
/// Each step has `memory<Layer>`, its temporaries: `memory(carver&, std::int64_t tokens)` takes them.
namespace switchyard::cuda {

/// How often a layer runs over its tokens, by `Router::schedule`: `enqueue<Layer>(args, queue, memory)`. `Products` are the backend's.
template <class Schedule, class Products>
struct schedule_step;

/// How routes come about, by `Router::source`: `enqueue<Layer>(args, queue, memory, results, pass)`; `pass` is null but in a stratified
/// layer. A block of its kernel has `block_tokens<Layer>(tokens)` tokens, at least `least_block_tokens`. `enqueue_auxiliary` and
/// `tokens_of_experts` as on the CPU.
template <class Source>
struct route_step;

/// What happens to the features of tokens before the router product, by `Router::features`: `enqueue<Layer>(args, queue, memory,
/// route_args)` makes what the product needs of it. `scales` says that there is something.
template <class Features>
struct feature_step;

/// What the experts compute, by `Expert::computation`: `enqueue<Layer>(args, queue, tokens, plan, memory, pass)`.
template <class Computation, class Products>
struct experts_step;

/// What the experts leave for the sum over each token's experts, all on the device. `Row`: what rows of routed experts are stored as.
template <class Element, class Row = summed_row<Element>>
struct expert_results {
  Row const* rows = nullptr;                         ///< [rows, stride]
  summed_row<Element> const* shared_rows = nullptr;  ///< [tokens, stride], null without a shared expert
  std::int64_t stride = 0;                           ///< a multiple of 16 bytes
  Element const* shared_gate = nullptr;              ///< [hidden], null without one
  float scale = 1.0f;                                ///< of the routed experts
  Element const* output_bias = nullptr;              ///< [hidden], null: nothing is added to the sums
  constant_expert_weights<Element> constant_experts = {};
};

}  // namespace switchyard::cuda
