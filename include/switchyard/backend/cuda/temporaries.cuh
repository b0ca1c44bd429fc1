#pragma once

#include <switchyard/backend/cuda/instructions.cuh>
#include <switchyard/backend/cuda/pair_sets.cuh>
#include <switchyard/capacity/capacity_policy.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/dispatch/plan.hpp>

#include <cstdint>

/// The temporaries of routes and the plan, the same for every layer of `backend::cuda`.
namespace switchyard::cuda {

/// Elements from one row to the next, where rows start at multiples of 16 bytes.
template <class Element>
constexpr std::int64_t padded(int width) {
  constexpr int size = chunk_bytes / static_cast<int>(sizeof(Element));
  return divide_up(width, size) * size;
}

/// What these temporaries depend on.
struct plan_sizes {
  int experts, all_experts, top_k;  ///< experts of the shape, and those that the router chooses from
  capacity_traits capacity;
  std::int64_t block_tokens, least_block_tokens;  ///< that a block routes, and those with few tokens

  /// Pairs wait in the order of their tokens' priorities.
  constexpr bool sorts() const { return capacity.drops && capacity.order == queue::priority; }
};

struct plan_memory {
  std::int32_t* experts;                              // [tokens, top_k]
  float *routed_weights, *weights;                    // [tokens, top_k]
  float* priority = nullptr;                          // [tokens]
  std::int32_t *order = nullptr, *scratch = nullptr;  // [tokens]
  std::uint8_t* dropped = nullptr;                    // [tokens, top_k]
  pair_sets chosen, kept, sorted;                     // see plan.cuh
  std::int32_t *below = nullptr, *rows = nullptr;     // [all experts, token_blocks], [experts, groups]
  dispatch_plan plan;

  constexpr plan_memory(plan_sizes const& sizes, carver& from, std::int64_t tokens) {
    std::int64_t const pairs = tokens * sizes.top_k;
    experts = from.take<std::int32_t>(pairs);
    weights = routed_weights = from.take<float>(pairs);
    if (sizes.capacity.renormalises) weights = from.take<float>(pairs);
    if (sizes.sorts()) {
      priority = from.take<float>(tokens);
      order = from.take<std::int32_t>(tokens);
      scratch = from.take<std::int32_t>(tokens);
    }
    auto const sets = [&] {
      pair_sets result;
      result.block_pairs = static_cast<int>(sizes.block_tokens) * sizes.top_k;
      result.token_blocks = divide_up(tokens, sizes.block_tokens);
      // Small token_blocks take more words but for the last one: room for both, so that fewer tokens never need more.
      pair_sets of_small = result;
      of_small.block_pairs = static_cast<int>(sizes.least_block_tokens) * sizes.top_k;
      of_small.token_blocks = divide_up(tokens, sizes.least_block_tokens);
      std::int64_t const small = of_small.words_per_expert(), words = result.words_per_expert();
      result.words = from.take<std::uint32_t>(sizes.all_experts * (small > words ? small : words));
      return result;
    };
    kept = chosen = sets();
    if (sizes.capacity.drops) {
      kept = sets();
      if (sizes.sorts()) sorted = sets();
      dropped = from.take<std::uint8_t>(pairs);
      rows = from.take<std::int32_t>(sizes.experts * tokens);  // as many groups as tokens at most
    } else {
      below = from.take<std::int32_t>(sizes.all_experts * divide_up(tokens, sizes.least_block_tokens));
    }
    plan.offsets = from.take<std::int32_t>(sizes.experts + 1);
    plan.pair_of = from.take<std::int32_t>(pairs);
    plan.row_of = from.take<std::int32_t>(pairs);
  }
};

}  // namespace switchyard::cuda
