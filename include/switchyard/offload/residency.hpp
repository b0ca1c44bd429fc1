#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/offload/policies.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace switchyard::offload {

/// Which pieces are in which places, which calls are expected, and what is to be read next: all that a cache decides, without its
/// threads and its memory. The simulator runs the same.
///
/// A call begins with what it needs, of one layer. What is resident of that it takes, uses and is done with; what is not has to be read
/// first. `next_load` says what is read next, and into which place, as soon as that place is free to be overwritten. It follows the policy
/// from the present call through the expected ones, so that reading ahead only does earlier what the policy would do anyway.
///
/// All memory is taken by the constructor. Functions take time in proportion to the places, and `next_load` to the
/// experts of the calls that it looks at.
template <residency_policy Policy>
class residency {
 public:
  enum class state : std::uint8_t { empty, loading, ready, taken };
  struct load {
    int layer, expert, place;
  };

  /// Of `layers * experts` pieces at most `places` are resident at a time, and at most `horizon` calls are expected. `frequencies`,
  /// [layers, experts], is empty where nothing was recorded.
  residency(int layers, int experts, int places, std::int64_t horizon, Policy policy = {},
            std::vector<double> frequencies = {})
      : layers_(layers),
        experts_(experts),
        words_((experts + 63) / 64),
        horizon_(horizon < 1 ? 1 : horizon),
        policy_(std::move(policy)),
        frequencies_(std::move(frequencies)),
        places_(static_cast<std::size_t>(places)),
        followed_(places_.size()),
        place_of_(static_cast<std::size_t>(layers) * static_cast<std::size_t>(experts), none),
        followed_place_of_(place_of_.size()),
        next_use_(place_of_.size(), never),
        share_(place_of_.size()),
        unreadable_(place_of_.size()),
        first_of_layer_(static_cast<std::size_t>(layers), never),
        last_of_layer_(first_of_layer_.size(), never),
        expected_of_layer_(first_of_layer_.size()),
        share_of_layer_(first_of_layer_.size()),
        needed_(static_cast<std::size_t>(words_)),
        misses_(needed_.size()),
        expected_(static_cast<std::size_t>(horizon_)),
        expected_needs_(static_cast<std::size_t>(horizon_) * static_cast<std::size_t>(words_)) {
    if (!frequencies_.empty() && frequencies_.size() != place_of_.size()) {
      fail("offload, frequencies", std::to_string(place_of_.size()) + " numbers, [layers, experts]",
           std::to_string(frequencies_.size()));
    }
  }

  int layers() const { return layers_; }
  int experts() const { return experts_; }
  int places() const { return static_cast<int>(places_.size()); }

  /// How many more calls may be expected.
  std::int64_t room_to_expect() const { return horizon_ - (end_ - front_); }
  bool expects_calls() const { return end_ > front_; }
  /// A call of a layer will need these experts, after all that have been told before. There has to be room.
  void expect(int layer, std::span<std::int32_t const> experts) {
    std::int64_t const number = end_++;
    expected_call& call = expected_[slot(number)];
    call = {layer, never};
    std::uint64_t* const needs = needs_of(number);
    std::fill(needs, needs + words_, std::uint64_t{0});
    std::int64_t& last = last_of_layer_[index(layer)];
    (first_of_layer_[index(layer)] == never ? first_of_layer_[index(layer)] : expected_[slot(last)].following) = number;
    last = number;
    ++expected_of_layer_[index(layer)];
    for (std::int32_t e : experts) {
      needs[e / 64] |= std::uint64_t{1} << e % 64;
      std::int64_t& next = next_use_[piece_of(layer, e)];
      if (next == never) next = number;
    }
  }
  /// Nothing is expected any more.
  void forget_expected() {
    front_ = end_;
    std::fill(first_of_layer_.begin(), first_of_layer_.end(), never);
    std::fill(expected_of_layer_.begin(), expected_of_layer_.end(), 0);
    std::fill(next_use_.begin(), next_use_.end(), never);
  }

  /// Begins a call. The first expected call of the layer was this one: it is not expected any more, nor are those before it.
  void begin(int layer, std::span<std::int32_t const> experts) {
    ++call_;
    layer_ = layer;
    std::int64_t const number = first_of_layer_[index(layer)];
    if (number != never) {
      while (front_ <= number) forget_first();
    }
    std::fill(needed_.begin(), needed_.end(), std::uint64_t{0});
    for (std::int32_t e : experts) {
      needed_[index(e / 64)] |= std::uint64_t{1} << e % 64;
      unreadable_[piece_of(layer, e)] = 0;
    }
    share_of_layer_[index(layer)] += newest * (1.0 - share_of_layer_[index(layer)]);
    for (int e = 0; e < experts_; ++e) {
      double& share = share_[piece_of(layer, e)];
      share += newest * ((is_needed(e) ? 1.0 : 0.0) - share);
    }
    if constexpr (Policy::drops_unneeded) {
      for (place& p : places_) {
        if (p.what == state::ready && p.layer == layer && !is_needed(p.expert)) clear(p);
      }
    }
  }

  /// Whether the present call still has to use something.
  bool is_over() const {
    for (std::uint64_t word : needed_) {
      if (word != 0) return false;
    }
    return true;
  }
  /// Ends the call: what it has not used is not needed.
  void end() { std::fill(needed_.begin(), needed_.end(), std::uint64_t{0}); }

  /// Calls `to(expert, place)` for what the present call needs and that is ready, in the order of experts, and takes it: all of it, or
  /// one where a read waits for a place that is in use, so that the place is soon free.
  template <class To>
  void take(To const& to) {
    int room = waits_for_place_ ? 1 : experts_;
    for_each(needed_.data(), [&](int e) {
      int const at = place_of_[piece_of(layer_, e)];
      if (at == none || places_[index(at)].what != state::ready || room == 0) return;
      --room;
      places_[index(at)].what = state::taken;
      to(e, at);
    });
  }
  /// The present call is done with what it has taken. How much that was.
  int finish_taken() {
    int count = 0;
    for_each(needed_.data(), [&](int e) {
      int const at = place_of_[piece_of(layer_, e)];
      if (at == none || places_[index(at)].what != state::taken) return;
      places_[index(at)].what = state::ready;
      places_[index(at)].last_use = call_;
      needed_[index(e / 64)] &= ~(std::uint64_t{1} << e % 64);
      ++count;
    });
    return count;
  }

  /// What is to be read now, if anything: its place counts as taken up from then on.
  std::optional<load> next_load() {
    follow_from_here();
    int planned = 0;
    waits_for_place_ = false;
    if (auto const found = misses_of(needed_.data(), layer_, never, planned)) return begin_load(*found);
    std::int64_t const last = std::min(end_, front_ + most_calls);
    for (std::int64_t number = front_; number < last && planned < most_planned; ++number) {
      int const layer = expected_[slot(number)].layer;
      if constexpr (Policy::drops_unneeded) {
        std::uint64_t const* const needs = needs_of(number);
        for (followed& f : followed_) {
          if (f.is.layer == layer && f.is.expert >= 0 && (needs[f.is.expert / 64] >> f.is.expert % 64 & 1) == 0) {
            forget(f);
          }
        }
      }
      if (auto const found = misses_of(needs_of(number), layer, number, planned)) return begin_load(*found);
    }
    waits_for_place_ = planned > 0;
    return std::nullopt;
  }
  void arrived(int at) { places_[index(at)].what = state::ready; }
  /// It could not be read: it is not read ahead again before a call needs it.
  void failed(int at) {
    place& p = places_[index(at)];
    unreadable_[piece_of(p.layer, p.expert)] = 1;
    clear(p);
  }

  state state_of(int layer, int expert) const {
    int const at = place_of_[piece_of(layer, expert)];
    return at == none ? state::empty : places_[index(at)].what;
  }
  bool is_needed(int expert) const { return (needed_[index(expert / 64)] >> expert % 64 & 1) != 0; }
  int layer_of_call() const { return layer_; }
  /// Places that hold a piece, or will.
  int used_places() const { return used_; }

 private:
  static constexpr int none = -1;
  static constexpr int most_planned = 32, most_calls = 64;  // what `next_load` looks at
  static constexpr double newest = 0.05;                    // what a layer's last call counts of all, in `share_`

  struct place {
    state what = state::empty;
    int layer = none, expert = none;
    std::int64_t last_use = 0;
  };
  struct expected_call {
    int layer = 0;
    std::int64_t following = never;  // the next one of the same layer
  };
  struct found_load {
    load what;
    std::int64_t call;  // that needs it
  };
  /// A place on the way through the calls to come.
  struct followed {
    resident is;
    bool blocked;  // what stands there now is still needed before what will be put there
  };

  template <class Number>
  static std::size_t index(Number number) {
    return static_cast<std::size_t>(number);
  }
  std::size_t slot(std::int64_t number) const { return index(number % horizon_); }
  std::size_t piece_of(int layer, int expert) const { return index(layer) * index(experts_) + index(expert); }
  std::uint64_t* needs_of(std::int64_t number) { return expected_needs_.data() + slot(number) * index(words_); }

  template <class Each>
  void for_each(std::uint64_t const* needs, Each const& each) const {
    for (int w = 0; w < words_; ++w) {
      for (std::uint64_t rest = needs[w]; rest != 0; rest &= rest - 1) each(w * 64 + std::countr_zero(rest));
    }
  }

  void clear(place& p) {
    place_of_[piece_of(p.layer, p.expert)] = none;
    p = {};
    --used_;
  }

  /// The next call after one of the same layer that needs an expert.
  std::int64_t next_use_after(std::int64_t number, int expert) {
    for (std::int64_t next = expected_[slot(number)].following; next != never; next = expected_[slot(next)].following) {
      if ((needs_of(next)[expert / 64] >> expert % 64 & 1) != 0) return next;
    }
    return never;
  }
  void forget_first() {
    std::int64_t const number = front_++;
    int const layer = expected_[slot(number)].layer;
    first_of_layer_[index(layer)] = expected_[slot(number)].following;
    --expected_of_layer_[index(layer)];
    for_each(needs_of(number), [&](int e) {
      std::int64_t& next = next_use_[piece_of(layer, e)];
      if (next == number) next = next_use_after(number, e);
    });
  }

  void follow_from_here() {
    followed_place_of_ = place_of_;
    for (std::size_t i = 0; i < places_.size(); ++i) {
      place const& p = places_[i];
      bool const is_used = p.layer == layer_ && p.expert != none && is_needed(p.expert);
      followed_[i] = {{p.layer, p.expert, p.last_use, never, 0.0, 0.0},
                      p.what == state::loading || p.what == state::taken || is_used};
      if (p.expert == none) continue;
      std::size_t const piece = piece_of(p.layer, p.expert);
      followed_[i].is.next_use = next_use_[piece];
      if (!frequencies_.empty()) followed_[i].is.frequency = frequencies_[piece];
    }
  }
  void forget(followed& f) {
    followed_place_of_[piece_of(f.is.layer, f.is.expert)] = none;
    f.is = {none, none, 0, never, 0.0, 0.0};
  }

  /// Follows one call, the present one or an expected one: what is there of its needs is used, then the others are read one after the
  /// other, each into the place that is empty or whose piece the policy gives up. The first whose place may be overwritten now is found.
  std::optional<found_load> misses_of(std::uint64_t const* needs, int layer, std::int64_t number, int& planned) {
    std::int64_t const call = number == never ? call_ : call_ + 1 + (number - front_);
    auto const use = [&](followed& f, std::size_t piece) {
      f.is.last_use = call;
      f.is.next_use = number == never ? next_use_[piece] : next_use_after(number, f.is.expert);
    };
    std::fill(misses_.begin(), misses_.end(), std::uint64_t{0});
    for_each(needs, [&](int e) {
      std::size_t const piece = piece_of(layer, e);
      int const at = followed_place_of_[piece];
      if (at == none) {
        if (unreadable_[piece] == 0) misses_[index(e / 64)] |= std::uint64_t{1} << e % 64;
      } else {
        use(followed_[index(at)], piece);
        followed_[index(at)].blocked = true;
      }
    });
    for (int w = 0; w < words_; ++w) {
      for (std::uint64_t rest = misses_[index(w)]; rest != 0; rest &= rest - 1) {
        int const e = w * 64 + std::countr_zero(rest);
        std::size_t const piece = piece_of(layer, e);
        int const at = place_for_next(layer, number == never ? front_ - 1 : number);
        followed& f = followed_[index(at)];
        // What is given up on the way and read again cannot be read before it is gone.
        bool const is_given_up = place_of_[piece] != none ||
                                 (Policy::drops_unneeded && number != never && first_of_layer_[index(layer)] != number);
        if (!is_given_up) {
          bool const is_soon = number == never || number < front_ + 3;
          int const now = !f.blocked ? at
                          : is_soon  ? place_out_of_turn(at, most_out_of_turn() - planned, number)
                                     : none;
          if (now != none) return found_load{{layer, e, now}, call};
        }
        if (++planned >= most_planned) return std::nullopt;
        f.blocked = true;
        if (f.is.expert != none) followed_place_of_[piece_of(f.is.layer, f.is.expert)] = none;
        f.is = {layer, e, 0, never, 0.0, frequencies_.empty() ? 0.0 : frequencies_[piece]};
        use(f, piece);
        followed_place_of_[piece] = at;
      }
    }
    return std::nullopt;
  }
  /// The place that the next piece goes to: one that is empty, else that of the piece which the policy gives up first. Of equals the lower
  /// layer and expert goes, so that nothing depends on which piece stands where.
  int place_for_next(int layer, std::int64_t number) {
    bool const keeps_to_share = is_share_used_up(layer, number);
    int best = none;
    for (std::size_t i = 0; i < followed_.size(); ++i) {
      if (followed_[i].is.expert != none)
        followed_[i].is.calls_until_use = calls_until_use(followed_[i].is, layer, number);
      if (keeps_to_share && followed_[i].is.layer != layer) continue;
      if (best == none || goes_before(followed_[i], followed_[index(best)])) best = static_cast<int>(i);
    }
    return best;
  }
  /// Whether a layer has its share of the places while all are called for the first time. If the first ones took all places, they would be there
  /// ever after, and nothing of the others: calls with nothing to read would take turns with calls that wait.
  bool is_share_used_up(int layer, std::int64_t number) const {
    if (Policy::out_of_turn == 0 || call_ + 1 + (number - front_) > layers_) return false;
    int count = 0;
    for (followed const& f : followed_) count += f.is.layer == layer;
    return count > 0 && count * layers_ >= places();
  }
  /// In a small cache what goes out of turn costs more reads than it is worth.
  int most_out_of_turn() const { return std::min(Policy::out_of_turn, std::max(1, places() / 4)); }
  /// Where a piece goes whose place, `at`, is still in use: the first that may be overwritten of those after it in the order of the policy.
  /// So many are looked at; a piece that is needed before the one that is read is not given up.
  int place_out_of_turn(int at, int count, std::int64_t number) const {
    std::int64_t const call = number == never ? front_ - 1 : number;
    int passed[static_cast<std::size_t>(Policy::out_of_turn) + 1];
    for (int passes = 0; passes < count;) {
      passed[passes++] = at;
      at = none;
      for (std::size_t i = 0; i < followed_.size(); ++i) {
        int const candidate = static_cast<int>(i);
        if (at != none && !goes_before(followed_[i], followed_[index(at)])) continue;
        if (std::find(passed, passed + passes, candidate) == passed + passes) at = candidate;
      }
      if (at == none || followed_[index(at)].is.next_use <= call) return none;
      if (!followed_[index(at)].blocked) return at;
    }
    return none;
  }
  /// From a call of a layer, expected or, with `front_ - 1`, the present one.
  double calls_until_use(resident const& piece, int layer, std::int64_t number) const {
    if (piece.next_use != never) return static_cast<double>(piece.next_use - number);
    int const turn = piece.layer > layer ? piece.layer - layer : piece.layer - layer + layers_;
    // Little is known at first.
    double const share =
        (share_[piece_of(piece.layer, piece.expert)] + 0.5 * newest) / (share_of_layer_[index(piece.layer)] + newest);
    return turn + layers_ * (expected_of_layer_[index(piece.layer)] + 1.0 / share - 1.0);
  }
  bool goes_before(followed const& a, followed const& b) const {
    if (a.is.expert == none || b.is.expert == none) {
      return a.is.expert == none && (b.is.expert != none || (!a.blocked && b.blocked));
    }
    if (policy_.goes_before(a.is, b.is)) return true;
    if (policy_.goes_before(b.is, a.is)) return false;
    return std::pair(a.is.layer, a.is.expert) < std::pair(b.is.layer, b.is.expert);
  }
  load begin_load(found_load const& found) {
    load const& next = found.what;
    place& p = places_[index(next.place)];
    if (p.expert != none) {
      place_of_[piece_of(p.layer, p.expert)] = none;
    } else {
      ++used_;
    }
    p = {state::loading, next.layer, next.expert, found.call};
    place_of_[piece_of(next.layer, next.expert)] = next.place;
    return next;
  }

  int layers_, experts_, words_;
  std::int64_t horizon_;
  Policy policy_;
  std::vector<double> frequencies_;

  std::vector<place> places_;
  std::vector<followed> followed_;      // [places], scratch of `next_load`
  std::vector<int> place_of_;           // [layers, experts], `none` where it is not resident
  std::vector<int> followed_place_of_;  // the same of `followed_`
  std::vector<std::int64_t> next_use_;  // [layers, experts], the expected call after the present one
  std::vector<double> share_;  // [layers, experts], of the layer's calls that needed the expert, of late above all
  std::vector<std::uint8_t> unreadable_;
  std::vector<std::int64_t> first_of_layer_, last_of_layer_;  // [layers], expected calls
  std::vector<int> expected_of_layer_;                        // [layers], how many
  std::vector<double> share_of_layer_;                        // [layers], what `share_` is of: less than 1 at first
  std::vector<std::uint64_t> needed_;  // what the present call still has to use, a bit for each expert
  std::vector<std::uint64_t> misses_;  // scratch of `misses_of`
  std::int64_t call_ = 0;
  int layer_ = 0;
  int used_ = 0;                  // places that are not empty
  bool waits_for_place_ = false;  // something would be read if what is in its place was used

  // A ring of the calls from `front_` to `end_ - 1`.
  std::vector<expected_call> expected_;
  std::vector<std::uint64_t> expected_needs_;  // [horizon, words]
  std::int64_t front_ = 0, end_ = 0;
};

}  // namespace switchyard::offload
