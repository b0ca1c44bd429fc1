#pragma once

#include <switchyard/core/shape.hpp>

#include <concepts>
#include <cstdint>
#include <string_view>

namespace switchyard {

/// In which order (token, choice) pairs ask an expert for a slot.
enum class queue {
  token_order,   ///< token by token, all choices of a token together
  choice_order,  ///< all first choices in token order, then all second choices, ... (GShard, fairseq, NLLB)
  priority       ///< as choice_order, but tokens in descending order of `route::priority` (batch-prioritised)
};

/// What a dropped (token, expert) pair adds to the token's output.
enum class dropped {
  zero,            ///< nothing: the residual connection outside of the layer carries the token
  weighted_input,  ///< combine weight times token, as if the expert were the identity
  input  ///< nothing, but a token all of whose pairs are dropped is handed through as its experts would have seen it
};

struct capacity_traits {
  bool drops = true;  ///< false: every expert takes every row
  queue order = queue::choice_order;
  dropped on_drop = dropped::zero;
  bool renormalises = false;    ///< weights of a token are divided by the sum of those kept
  bool counts_padding = false;  ///< rows that are not active count among the tokens that capacity is a share of
};

/// How many rows an expert takes, and what happens to the others. `slots_per_expert` is SWITCHYARD_HD for a GPU: how many
/// tokens of a call are active, or in a pass of `router::stratified`, only the device knows.
template <class Capacity>
concept capacity_policy = requires(shape dims, std::int64_t tokens) {
  { Capacity::name } -> std::convertible_to<std::string_view>;
  { Capacity::traits } -> std::convertible_to<capacity_traits>;
  { Capacity::slots_per_expert(dims, tokens) } -> std::same_as<std::int64_t>;
};

}  // namespace switchyard
