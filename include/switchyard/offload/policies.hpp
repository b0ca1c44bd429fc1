#pragma once

#include <concepts>
#include <cstdint>
#include <limits>
#include <string_view>

namespace switchyard::offload {

/// `resident::next_use` of a piece that no call is expected to need.
inline constexpr std::int64_t never = std::numeric_limits<std::int64_t>::max();

/// What a policy knows of a piece that is resident. Calls are numbered; the present one is the last that has begun.
struct resident {
  int layer, expert;
  std::int64_t last_use;   ///< the call that used it last, or that it was fetched for
  std::int64_t next_use;   ///< the expected call that needs it next, after the present one; `never`
  double calls_until_use;  ///< how many calls until it is needed: as expected, else an estimate, see `by_next_use`
  double frequency;        ///< how often it was needed where that was recorded, 0 without a record
};

/// Which pieces stay resident. A policy knows no threads and no memory, so that the simulator runs it, too. A piece that is being read, or
/// that the present call still has to use, is never given up, whatever the policy says.
///
/// Fetching ahead never changes what a policy decides: it does earlier what the policy would do once the expected calls come. The one exception
/// is a policy whose `out_of_turn` is not 0. Where the present or one of the three next calls needs a piece, and the place of the piece whose turn
/// it is to go is still in use, so many others are looked at in its stead, in the order of the policy; else all that is read would come
/// through one place, for what was just used is needed last, and reading would wait for computing.
template <class Policy>
concept residency_policy = requires(Policy const& policy, resident const& piece) {
  { Policy::name } -> std::convertible_to<std::string_view>;
  { Policy::drops_unneeded } -> std::convertible_to<bool>;  // a call gives up what it does not need of its layer
  { Policy::out_of_turn } -> std::convertible_to<int>;
  {
    policy.goes_before(piece, piece)
    } -> std::same_as<bool>;  // the first is given up before the second: a strict weak order
};

/// As published (SiDA): what the present table does not need goes.
struct exact {
  static constexpr std::string_view name = "exact";
  static constexpr bool drops_unneeded = true;
  static constexpr int out_of_turn = 0;
  static bool goes_before(resident const& a, resident const& b) { return a.last_use < b.last_use; }
};

/// The least recently used goes.
struct lru {
  static constexpr std::string_view name = "lru";
  static constexpr bool drops_unneeded = false;
  static constexpr int out_of_turn = 0;
  static bool goes_before(resident const& a, resident const& b) { return a.last_use < b.last_use; }
};

/// What is expected to be needed last goes; of those that nobody expects, the least recently used. With all calls known that is Belady's
/// rule, which reads least, but for what goes out of turn.
struct lru_with_lookahead {
  static constexpr std::string_view name = "lru_with_lookahead";
  static constexpr bool drops_unneeded = false;
  static constexpr int out_of_turn = 4;
  static bool goes_before(resident const& a, resident const& b) {
    return a.next_use != b.next_use ? a.next_use > b.next_use : a.last_use < b.last_use;
  }
};

/// What will be needed last goes, as far as one can tell, which is what reads least where layers take turns.
///
/// Of what is expected that is known. Else a piece of layer l is needed again when that layer's turn comes, after the calls of it that are
/// expected and do not need the piece, and after as many more rounds as its use until now makes likely: a piece that a share p of the layer's
/// calls used, of late above all, is not needed in 1 / p - 1 of them on average. Without it the pieces of the next layer, which have not been used for
/// longest, would be the first to go.
struct by_next_use {
  static constexpr std::string_view name = "by_next_use";
  static constexpr bool drops_unneeded = false;
  static constexpr int out_of_turn = 4;
  static bool goes_before(resident const& a, resident const& b) {
    return a.calls_until_use != b.calls_until_use ? a.calls_until_use > b.calls_until_use : a.last_use < b.last_use;
  }
};

/// What was needed most often where that was recorded stays; the least recently used of equals goes.
struct pinned_by_frequency {
  static constexpr std::string_view name = "pinned_by_frequency";
  static constexpr bool drops_unneeded = false;
  static constexpr int out_of_turn = 0;
  static bool goes_before(resident const& a, resident const& b) {
    return a.frequency != b.frequency ? a.frequency < b.frequency : a.last_use < b.last_use;
  }
};

static_assert(residency_policy<exact> && residency_policy<lru> && residency_policy<lru_with_lookahead> &&
              residency_policy<by_next_use> && residency_policy<pinned_by_frequency>);

}  // namespace switchyard::offload
