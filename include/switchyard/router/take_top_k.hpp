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

/// The choices where one lane has all experts: the largest value of each group of 16 is kept, and only the group that a choice leaves is
/// looked through again.
template <int TopK, int Experts>
constexpr chosen<TopK> take_top_k_alone(per_expert<Experts, serial_lanes> const& all) {
  constexpr int group_size = 16, groups = (Experts + group_size - 1) / group_size;
  float left[groups][group_size], largest[groups];  // what is chosen leaves minus infinity
  for (int id = 0; id < groups * group_size; ++id) {
    float const value = id < Experts ? all.value[id] : -infinity;
    left[id / group_size][id % group_size] = value > -infinity ? value : -infinity;  // nor is a NaN ever chosen
  }
  auto const largest_of = [](float const(&group)[group_size]) {
    float most[group_size / 2];  // halves meet, so that no value waits for all before it
    for (int i = 0; i < 8; ++i) most[i] = group[i] > group[i + 8] ? group[i] : group[i + 8];
    for (int i = 0; i < 4; ++i) most[i] = most[i] > most[i + 4] ? most[i] : most[i + 4];
    for (int i = 0; i < 2; ++i) most[i] = most[i] > most[i + 2] ? most[i] : most[i + 2];
    return most[0] > most[1] ? most[0] : most[1];
  };
  for (int g = 0; g < groups; ++g) largest[g] = largest_of(left[g]);
  chosen<TopK> result{};
  candidate last = before_all;
  for (candidate& choice : result.choice) {
    float best = -infinity;
    for (float value : largest) best = value > best ? value : best;
    if (best == -infinity) {  // only closed experts are left, and what is no number
      choice = last = next_choice(serial_lanes{}, all, last);
      continue;
    }
    int group = 0, place = 0;
    while (largest[group] != best) ++group;
    while (left[group][place] != best) ++place;
    choice = last = {best, group * group_size + place};
    left[group][place] = -infinity;
    largest[group] = largest_of(left[group]);
  }
  return result;
}

template <int TopK, int Experts, class Lanes>
SWITCHYARD_HD constexpr chosen<TopK> take_top_k(Lanes lanes, per_expert<Experts, Lanes> const& values) {
#if !defined(__CUDA_ARCH__)
  if constexpr (Lanes::size == 1 && Experts >= 32) return take_top_k_alone<TopK>(values);
#endif
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
