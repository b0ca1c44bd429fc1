#pragma once

#include <switchyard/core/lanes.hpp>

namespace switchyard::router {

/// The id of a choice, or -1 where it fell on an expert that is closed: fewer than `top_k` are open.
SWITCHYARD_HD constexpr int open_or_none(candidate choice) { return choice.value == -infinity ? -1 : choice.id; }

/// The first expert by `precedes` after `last` where one lane has them all: the largest value, for which no expert waits for the one
/// before it, then the lowest id that has it.
template <int Experts>
constexpr candidate next_choice_alone(float const (&values)[Experts], candidate last) {
  constexpr int together = 16;
  float most[together];
  for (float& m : most) m = -infinity;
  auto const follows = [&](int id) { return values[id] < last.value || (values[id] == last.value && id > last.id); };
  int id = 0;
  for (; id + together <= Experts; id += together) {
    for (int i = 0; i < together; ++i) {
      float const value = follows(id + i) ? values[id + i] : -infinity;
      most[i] = value > most[i] ? value : most[i];
    }
  }
  float best = -infinity;
  for (; id < Experts; ++id) best = follows(id) && values[id] > best ? values[id] : best;
  for (float m : most) best = m > best ? m : best;
  for (id = 0; id < Experts; ++id) {
    if (values[id] == best && follows(id)) return {best, id};
  }
  return after_all;
}

/// The first expert by `precedes` after `last`, on every lane; `before_all` asks for the very first.
template <int Experts, class Lanes>
SWITCHYARD_HD constexpr candidate next_choice(Lanes lanes, per_expert<Experts, Lanes> const& values, candidate last) {
  using share = per_expert<Experts, Lanes>;
#if !defined(__CUDA_ARCH__)
  if constexpr (Lanes::size == 1 && Experts >= 32) return next_choice_alone(values.value, last);
#endif
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

/// The same where one lane has them all and many are taken: each choice looks at the largest values of groups, and at one group.
template <int TopK, int Experts>
constexpr chosen<TopK> take_top_k_alone(float const (&values)[Experts]) {
  constexpr int together = 16, groups = (Experts + together - 1) / together;
  float left[groups * together] = {}, most[groups] = {};
  for (int i = 0; i < groups * together; ++i) left[i] = i < Experts ? values[i] : -infinity;
  auto const largest_of = [&](int group) {
    float const* const of_group = left + group * together;
    float halves[together / 2] = {};
    for (int i = 0; i < together / 2; ++i) {
      halves[i] = of_group[i] > of_group[i + together / 2] ? of_group[i] : of_group[i + together / 2];
    }
    float best = halves[0];
    for (float h : halves) best = h > best ? h : best;
    return best;
  };
  for (int g = 0; g < groups; ++g) most[g] = largest_of(g);
  chosen<TopK> result{};
  for (int k = 0; k < TopK; ++k) {
    int group = 0;
    for (int g = 1; g < groups; ++g) group = most[g] > most[group] ? g : group;
    int id = group * together;
    while (left[id] != most[group]) ++id;
    result.choice[k] = {most[group], id};
    left[id] = -infinity;
    most[group] = largest_of(group);
  }
  return result;
}

template <int TopK, int Experts, class Lanes>
SWITCHYARD_HD constexpr chosen<TopK> take_top_k(Lanes lanes, per_expert<Experts, Lanes> const& values) {
#if !defined(__CUDA_ARCH__)
  if constexpr (Lanes::size == 1 && Experts >= 32 && TopK >= 4) return take_top_k_alone<TopK>(values.value);
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
