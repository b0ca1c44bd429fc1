#pragma once

#include <switchyard/capacity/capacity_policy.hpp>
#include <switchyard/core/shape.hpp>

#include <algorithm>
#include <cstdint>

namespace switchyard {

/// Which rows each expert works on. Rows of one expert stand together, in token order; there are no padding rows.
/// A pair is (token, choice), numbered token * top_k + choice.
struct dispatch_plan {
  std::int32_t* offsets = nullptr;  ///< [experts + 1]: expert e has the rows offsets[e] to offsets[e + 1] - 1
  std::int32_t* pair_of = nullptr;  ///< [rows]: the pair that a row serves
  std::int32_t* row_of = nullptr;   ///< [tokens * top_k]: the row that serves a pair, or -1
};

namespace dispatch {

/// The decisions that a plan is made from, `[tokens, top_k]`. An id of -1 is a pair that goes nowhere (padding). Ids beyond the experts
/// of the shape compute nothing: they take no row and no slot, and `all experts` counts them, too.
struct assignment {
  std::int64_t tokens = 0;
  std::int64_t tokens_per_group = 0;     ///< each group has its own queues; 0: one group
  std::uint8_t const* active = nullptr;  ///< [tokens], 0: padding, which capacities do not count; null: all are active
  std::int32_t const* experts = nullptr;
  float* weights = nullptr;         ///< changed where the capacity renormalises
  float const* priority = nullptr;  ///< [tokens]; read by queue::priority
  std::uint8_t* dropped = nullptr;  ///< written
  std::int64_t* load = nullptr;     ///< [all experts], written: pairs that chose the expert, kept or not
  std::int32_t* used = nullptr;     ///< [all experts], scratch
  std::int32_t* order = nullptr;    ///< [tokens], scratch of queue::priority
};

/// The least denominator when weights are renormalised after dropping: the float epsilon, as in fairseq.
inline constexpr float least_weight_sum = 1.1920929e-7f;

namespace detail {

/// What of a plan depends on the layer.
struct plan_rules {
  int experts, all_experts, top_k;
  capacity_traits capacity;
  std::int64_t (*slots)(std::int64_t tokens);  ///< of each expert, for a group of so many tokens

  /// Whether an id is that of an expert which computes something.
  bool has_rows(std::int32_t expert) const {
    return static_cast<std::uint32_t>(expert) < static_cast<std::uint32_t>(experts);
  }
};

/// Says of every pair whether its expert takes it: the `slots` first in the order of the queue, group by group.
inline void drop_pairs(assignment const& a, plan_rules const& rules) {
  queue const order = rules.capacity.order;
  std::int64_t const group_size = a.tokens_per_group > 0 ? a.tokens_per_group : a.tokens;
  for (std::int64_t begin = 0; begin < a.tokens; begin += group_size) {
    std::int64_t const size = std::min(group_size, a.tokens - begin);
    std::int64_t counted = size;
    if (a.active != nullptr && !rules.capacity.counts_padding) {
      counted = size - std::count(a.active + begin, a.active + begin + size, std::uint8_t{0});
    }
    std::int64_t const slots = rules.slots(counted);
    std::fill(a.used, a.used + rules.experts, 0);
    auto const visit = [&](std::int64_t token, int k) {
      std::int64_t const pair = token * rules.top_k + k;
      std::int32_t const expert = a.experts[pair];
      bool const queues = rules.has_rows(expert);
      a.dropped[pair] = queues && a.used[expert] >= slots;
      if (queues) ++a.used[expert];
    };
    if (order == queue::token_order) {
      for (std::int64_t token = begin; token < begin + size; ++token) {
        for (int k = 0; k < rules.top_k; ++k) visit(token, k);
      }
    } else {
      if (order == queue::priority) {
        for (std::int64_t i = 0; i < size; ++i) a.order[i] = static_cast<std::int32_t>(begin + i);
        std::sort(a.order, a.order + size, [&](std::int32_t left, std::int32_t right) {
          return a.priority[left] > a.priority[right] || (a.priority[left] == a.priority[right] && left < right);
        });
      }
      for (int k = 0; k < rules.top_k; ++k) {
        for (std::int64_t i = 0; i < size; ++i) visit(order == queue::priority ? a.order[i] : begin + i, k);
      }
    }
  }
}

/// Divides each token's weights by the sum of those that were kept; dropped ones become 0.
inline void renormalise(assignment const& a, int top_k) {
  for (std::int64_t token = 0; token < a.tokens; ++token) {
    float* const weight = a.weights + token * top_k;
    std::uint8_t const* const dropped = a.dropped + token * top_k;
    float total = 0.0f;
    for (int k = 0; k < top_k; ++k) total += dropped[k] ? 0.0f : weight[k];
    if (total < least_weight_sum) total = least_weight_sum;  // a NaN stays
    for (int k = 0; k < top_k; ++k) weight[k] = dropped[k] ? 0.0f : weight[k] / total;
  }
}

inline void make_plan(assignment const& a, plan_rules const& rules, dispatch_plan const& plan) {
  std::int64_t const pairs = a.tokens * rules.top_k;
  if (rules.capacity.drops) {
    drop_pairs(a, rules);
    if (rules.capacity.renormalises) renormalise(a, rules.top_k);
  } else {
    std::fill(a.dropped, a.dropped + pairs, std::uint8_t{0});
  }

  std::fill(a.load, a.load + rules.all_experts, std::int64_t{0});
  std::fill(a.used, a.used + rules.all_experts, 0);  // now: rows of each expert
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    std::int32_t const expert = a.experts[pair];
    if (expert < 0) continue;
    ++a.load[expert];
    if (!a.dropped[pair]) ++a.used[expert];
  }
  plan.offsets[0] = 0;
  for (int e = 0; e < rules.experts; ++e) {
    plan.offsets[e + 1] = plan.offsets[e] + a.used[e];
    a.used[e] = plan.offsets[e];  // now: the next free row
  }
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    std::int32_t const expert = a.experts[pair];
    bool const kept = rules.has_rows(expert) && !a.dropped[pair];
    plan.row_of[pair] = kept ? a.used[expert]++ : -1;
    if (kept) plan.pair_of[plan.row_of[pair]] = static_cast<std::int32_t>(pair);
  }
}

}  // namespace detail

/// Says of every pair whether its expert takes it, `assignment::dropped`, without a plan and without changing weights.
template <capacity_policy Capacity, shape Dims, int AllExperts = Dims.experts>
void drop_pairs(assignment const& a) {
  auto const slots = [](std::int64_t tokens) { return Capacity::slots_per_expert(Dims, tokens); };
  if constexpr (Capacity::traits.drops) {
    detail::drop_pairs(a, {Dims.experts, AllExperts, Dims.top_k, Capacity::traits, slots});
  } else {
    std::fill(a.dropped, a.dropped + a.tokens * Dims.top_k, std::uint8_t{0});
  }
}

/// From decisions to rows, on one thread: O(tokens * top_k + groups * experts), and a sort under queue::priority.
template <capacity_policy Capacity, shape Dims, int AllExperts = Dims.experts>
void make_plan(assignment const& a, dispatch_plan const& plan) {
  auto const slots = [](std::int64_t tokens) { return Capacity::slots_per_expert(Dims, tokens); };
  detail::make_plan(a, {Dims.experts, AllExperts, Dims.top_k, Capacity::traits, slots}, plan);
}

}  // namespace dispatch
}  // namespace switchyard
