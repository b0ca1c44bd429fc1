#pragma once

#include <switchyard/core/lanes.hpp>

#include <cstddef>
#include <functional>
#include <stdexcept>
#include <vector>

/// A group of lanes in lock-step, emulated on one thread: the stand-in for a GPU's warp.
///
/// Every lane runs until it needs what others hold, leaves its share and stops by an exception. When all have
/// left theirs, the exchange is done and every lane runs again from the start with its result, up to the next one.
/// A lane whose exchange differs from the others' throws std::logic_error: on a GPU the group would hang.
namespace emulated {

struct exchange {
  enum class kind { none, sum, max, best, from } what = kind::none;
  int lane = 0;  ///< of `from`
  std::vector<switchyard::candidate> shares;
};

struct waits_for_others {};

struct group_state {
  std::vector<exchange> exchanges;
  std::size_t at = 0;  ///< exchanges that the running lane has met
};

template <int Size>
struct lanes {
  static constexpr int size = Size;
  group_state* state;
  int number;

  int rank() const { return number; }
  float sum(float value) const {
    float total = 0.0f;
    for (auto const& c : meet(exchange::kind::sum, {value, 0})) total += c.value;
    return total;
  }
  float max(float value) const {
    float largest = value;
    for (auto const& c : meet(exchange::kind::max, {value, 0})) largest = c.value > largest ? c.value : largest;
    return largest;
  }
  switchyard::candidate best(switchyard::candidate mine) const {
    auto const& all = meet(exchange::kind::best, mine);
    switchyard::candidate first = all[0];
    for (auto const& c : all) first = switchyard::precedes(c, first) ? c : first;
    return first;
  }
  float from(float value, int lane) const {
    return meet(exchange::kind::from, {value, 0}, lane)[static_cast<std::size_t>(lane)].value;
  }

 private:
  std::vector<switchyard::candidate> const& meet(exchange::kind what, switchyard::candidate share, int lane = 0) const {
    std::size_t const mine = state->at++;
    if (mine == state->exchanges.size()) state->exchanges.push_back({what, lane, {}});
    exchange& met = state->exchanges[mine];
    if (met.what != what || met.lane != lane) throw std::logic_error("lanes meet at different exchanges");
    if (met.shares.size() == Size) return met.shares;
    if (static_cast<int>(met.shares.size()) != number) throw std::logic_error("a lane skipped an exchange");
    met.shares.push_back(share);
    throw waits_for_others{};
  }
};

/// Runs `body(lanes)` on every lane and returns what each lane returns, in the order of lanes.
template <int Size, class Body>
auto run(Body body) -> std::vector<decltype(body(lanes<Size>{}))> {
  group_state state;
  while (true) {
    std::vector<decltype(body(lanes<Size>{}))> results;
    for (int lane = 0; lane < Size; ++lane) {
      state.at = 0;
      try {
        results.push_back(body(lanes<Size>{&state, lane}));
      } catch (waits_for_others) {
      }
    }
    if (results.size() == Size) return results;
    if (!results.empty()) throw std::logic_error("some lanes are done while others wait");
  }
}

/// One token's logits dealt to the lanes of a group, or to one lane.
template <int Experts, class Lanes>
switchyard::per_expert<Experts, Lanes> deal(Lanes lanes, std::vector<float> const& logits) {
  using share = switchyard::per_expert<Experts, Lanes>;
  share mine;
  for (int i = 0; i < share::size; ++i) {
    int const id = share::expert(lanes, i);
    mine.value[i] = id < Experts ? logits[static_cast<std::size_t>(id)] : share::closed;
  }
  return mine;
}

}  // namespace emulated
