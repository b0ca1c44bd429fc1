#pragma once

#include <switchyard/core/finite.hpp>
#include <switchyard/router/product_keys.hpp>

#include <algorithm>
#include <cstdint>

/// What choosing by product keys needs with every instruction set: see product_keys.inl.
namespace switchyard::cpu {

/// Experts that a list of product keys keeps at most, unless it keeps them all, and sums that are looked at for so many.
inline constexpr int most_kept = 512, most_sums = [] {
  int sums = 0;
  for (int i = 0; i < most_kept; ++i) sums += product_key::partners(i, most_kept, most_kept);
  return sums;
}();

/// More values than are wanted, so that a search for a bound is short.
inline constexpr int spare_values = 16;

/// The best keys of one half in the order of choice, with room for a whole vector behind them.
struct ranked_keys {
  static constexpr int room = most_kept + spare_values + 16;
  float value[room];
  std::int32_t id[room];
  int count;
};

/// The number in the middle of those that lie between two.
inline float number_between(float low, float high) {
  auto const place = [](float x) {
    std::int64_t const bits = __builtin_bit_cast(std::uint32_t, x), magnitude = bits & 0x7fffffff;
    return bits == magnitude ? magnitude : -magnitude;
  };
  std::int64_t const sum = place(low) + place(high), middle = (sum - (sum < 0 ? 1 : 0)) / 2;
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(middle < 0 ? 0x80000000 - middle : middle));
}

/// The best `kept` pairs of first and second keys, best first, from the best of each half: the heap has the best pair that is left of
/// each first key, and the next first key comes in when the one before it has given its best pair. False where a score is not finite.
inline bool merge_pairs(ranked_keys const& first, ranked_keys const& second, int kept, int keys, std::int32_t* experts,
                        float* scores) {
  struct pair {
    product_key::scored of;
    int rank, partner;
  };
  pair waiting[most_kept + 1];
  int count = 0;
  auto const is_worse = [](pair const& a, pair const& b) { return product_key::precedes(b.of, a.of); };
  auto const add = [&](int rank, int partner) {
    waiting[count++] = {
        {product_key::score_of(first.value[rank], second.value[partner]), first.id[rank] * keys + second.id[partner]},
        rank,
        partner};
    std::push_heap(waiting, waiting + count, is_worse);
  };
  add(0, 0);
  for (int k = 0; k < kept; ++k) {
    std::pop_heap(waiting, waiting + count, is_worse);
    pair const best = waiting[--count];
    if (!is_finite(best.of.of.sum)) return false;
    experts[k] = best.of.id;
    scores[k] = best.of.of.sum;
    if (best.partner == 0 && best.rank + 1 < first.count) add(best.rank + 1, 0);
    if (best.partner + 1 < product_key::partners(best.rank, kept, second.count)) add(best.rank, best.partner + 1);
  }
  return true;
}

}  // namespace switchyard::cpu
