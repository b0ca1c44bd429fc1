#pragma once

#include <switchyard/core/lanes.hpp>

namespace switchyard::router {

/// The id of a choice, or -1 where it fell on an expert that is closed: fewer than `top_k` are open.
SWITCHYARD_HD constexpr int open_or_none(candidate choice) { return choice.value == -infinity ? -1 : choice.id; }

/// The first expert by `precedes` after `last`, on every lane; `before_all` asks for the very first.
template <int Experts, class Lanes>
SWITCHYARD_HD constexpr candidate next_choice(Lanes lanes, per_expert<Experts, Lanes> const& values, candidate last) {
  using share = per_expert<Experts, Lanes>;
  candidate best = after_all;
  for (int i = 0; i < share::size; ++i) {
    candidate const c{values.value[i], share::expert(lanes, i)};
    if (c.id < Experts && precedes(last, c) && precedes(c, best)) best = c;
  }
  return lanes.best(best);
}

/// The `TopK` first experts by `precedes`, on every lane. Deterministic: equal values go to the lower id.
template <int TopK>
struct chosen {
  candidate choice[TopK];
};

template <int TopK, int Experts, class Lanes>
SWITCHYARD_HD constexpr chosen<TopK> take_top_k(Lanes lanes, per_expert<Experts, Lanes> const& values) {
  chosen<TopK> result{};
  // The order is total, so the next choice is the first one after the last: nothing has to be marked.
  candidate last = before_all;
  for (int k = 0; k < TopK; ++k) {
    last = next_choice(lanes, values, last);
    result.choice[k] = last;
  }
  return result;
}

}  // namespace switchyard::router
